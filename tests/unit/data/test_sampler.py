"""The sampler is a bijection of the windows in each epoch, an exact blend, and the same function for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpt.data.sampler import LONGEST_PERIOD, Blend, Sampler, permute


def order(n: int, key: int) -> list[int]:
    return permute(np.arange(n), np.full(n, n), np.full(n, key, np.uint64)).tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(n: int, key: int) -> None:
    assert sorted(order(n, key)) == list(range(n))


def test_permute_mixes_domains_in_one_call() -> None:
    n = np.array([5] * 5 + [1] + [100] * 100)
    i = np.concatenate([np.arange(5), [0], np.arange(100)])
    out = permute(i, n, np.full(len(n), 9, np.uint64)).tolist()
    assert out == [*order(5, 9), 0, *order(100, 9)]


def test_permute_holds_for_trillions() -> None:
    n = np.full(10_000, 10**13 + 7)
    out = permute(np.arange(10_000) * 10**9, n, np.full(10_000, 3, np.uint64))
    assert 0 <= out.min() < out.max() < 10**13 + 7
    assert len(set(out.tolist())) == 10_000


def test_permute_is_even_and_uncorrelated() -> None:
    """Chi-square over 16 x 16 cells of (position, value), 255 - 30 degrees of freedom: mean 225, deviation 21."""
    chi_square = []
    for key in range(20):
        out = np.array(order(4096, key))
        cells = np.histogram2d(np.arange(4096), out, bins=16)[0]
        chi_square.append(((cells - 16) ** 2 / 16).sum())
        assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 0.08
    assert np.mean(chi_square) == pytest.approx(225, abs=25)


def counts_up_to(blend: Blend, weights: list[float], samples: int) -> np.ndarray:
    source, before = blend.locate(np.arange(samples))
    for s in range(len(weights)):
        assert np.array_equal(before[source == s], np.arange((source == s).sum()))
    return np.cumsum(source[None, :] == np.arange(len(weights))[:, None], axis=1)


@pytest.mark.parametrize(
    "weights",
    [[1.0], [0.7, 0.2, 0.1], [1, 2, 3], [1 / 3, 2 / 3], [0.9, *[0.01] * 10], [0.123, 0.877], [5, 0, 3], [1e4, 1]],
)
def test_the_count_of_each_source_is_never_more_than_one_off(weights: list[float]) -> None:
    counts = counts_up_to(Blend(weights), weights, 200_000)
    shares = np.array(weights)[:, None] / sum(weights)
    assert np.abs(counts - shares * np.arange(1, 200_001)).max() < 1 + 1e-6


@settings(max_examples=12, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_any_weights_are_dealt_exactly_to_their_nearest_fractions(weights: list[float]) -> None:
    blend = Blend(weights)
    counts = counts_up_to(blend, weights, 20_000)
    shares = blend.counts[:, None] / blend.period
    assert np.abs(counts - shares * np.arange(1, 20_001)).max() < 1
    assert np.abs(shares[:, 0] - np.array(weights) / sum(weights)).max() <= 1.01 / LONGEST_PERIOD


def test_random_access_equals_going_through() -> None:
    rng = np.random.default_rng(0)
    sampler = Sampler([12_345, 999, 5_000], 10, seed=3, weights=[2, 1, 0.5])
    source, start = sampler.locate(np.arange(5000))
    picks = rng.integers(0, 5000, 300)
    assert np.array_equal(sampler.locate(picks)[0], source[picks])
    assert np.array_equal(sampler.locate(picks)[1], start[picks])


def test_each_window_comes_once_in_an_epoch_and_epochs_differ() -> None:
    sampler = Sampler([1001], 10, seed=3, weights=[0.0])
    epochs = [sampler.locate(np.arange(e * 100, e * 100 + 100))[1].tolist() for e in range(3)]
    assert all(sorted(epoch) == list(range(0, 1000, 10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])
    other_seed = Sampler([1001], 10, seed=4, weights=[0.0]).locate(np.arange(100))[1].tolist()
    assert other_seed != epochs[0]


def test_by_token_count_all_sources_end_their_epoch_together() -> None:
    sampler = Sampler([701, 0, 301, 5], 10, seed=0, weights=[0.0] * 4)
    assert sampler.samples_before_repeat() == 100
    source, start = sampler.locate(np.arange(100))
    assert sorted(zip(source.tolist(), start.tolist(), strict=True)) == [
        *((0, s) for s in range(0, 700, 10)), *((2, s) for s in range(0, 300, 10))]  # fmt: skip
    assert sampler.epochs(50) == [0.5, 0.0, 0.5, 0.0]


def test_the_last_token_of_a_window_is_the_first_of_the_next() -> None:
    assert Sampler([21], 10, seed=0, weights=[0.0]).n_windows.tolist() == [2]
    assert Sampler([20], 10, seed=0, weights=[0.0]).n_windows.tolist() == [1]
    assert Sampler([10], 10, seed=0, weights=[0.0]).n_windows.tolist() == [0]


def test_the_order_is_the_same_in_every_version() -> None:
    """Recorded once: a run that resumes under a later dgpt must see the samples that it would have seen."""
    source, start = Sampler([10_001, 5_001], 100, seed=1337, weights=[3.0, 1.0]).locate(np.arange(12) + 1000)
    assert source.tolist() == GOLDEN_SOURCE
    assert start.tolist() == GOLDEN_START


GOLDEN_SOURCE = [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
GOLDEN_START = [5800, 300, 5500, 1600, 8800, 4000, 9900, 4500, 4100, 8400, 7700, 600]
