"""Exact values, ends and continuity of the learning rate schedules."""

import itertools
import math

import pytest

from dgpt.config import OptimizerConfig, ScheduleConfig
from dgpt.train.schedule import lr_at

OPTIMIZER = OptimizerConfig(lr=1e-3)
STEPS = 100


def curve(kind: str, **settings: float) -> list[float]:
    schedule = ScheduleConfig.model_validate({"kind": kind, "warmup_steps": 10, "min_lr": 1e-4, **settings})
    return [lr_at(step, OPTIMIZER, schedule, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_warmup_is_linear_moves_at_step_0_and_ends_at_the_peak(kind: str) -> None:
    lrs = curve(kind)
    assert lrs[:10] == pytest.approx([1e-4 * n for n in range(1, 11)])
    assert max(lrs) == lrs[9] == 1e-3


def test_cosine_is_halfway_in_the_middle_and_min_lr_at_the_last_step() -> None:
    lrs = curve("cosine")
    assert lrs[54] == pytest.approx(0.55e-3)  # update 55 is in the middle of 10 and 100
    assert lrs[32] == pytest.approx(1e-4 + 0.9e-3 * 0.5 * (1 + math.cos(math.pi * 23 / 90)))
    assert lrs[-1] == pytest.approx(1e-4)


def test_wsd_is_flat_and_then_falls_linearly_to_min_lr() -> None:
    lrs = curve("wsd", decay_steps=20)
    assert lrs[9:80] == [1e-3] * 71
    assert lrs[80:] == pytest.approx([1e-3 - 0.9e-3 * n / 20 for n in range(1, 21)])


def test_wsd_decays_over_a_tenth_by_default_and_never_into_the_warmup() -> None:
    assert curve("wsd") == curve("wsd", decay_steps=10)
    assert curve("wsd", warmup_steps=95)[93:] == pytest.approx(
        [1e-3 * 94 / 95, 1e-3, *(1e-3 - 0.9e-3 * n / 5 for n in range(1, 6))]
    )


def test_constant_stays_at_the_peak() -> None:
    assert curve("constant")[9:] == [1e-3] * 91


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("warmup", [0, 10, 100])
def test_no_step_jumps(kind: str, warmup: int) -> None:
    lrs = curve(kind, warmup_steps=warmup)
    largest = max(1e-3 / max(warmup, 1), 0.9e-3 / 10)  # the slopes of the warmup and of the decay of wsd
    assert all(abs(b - a) <= largest * (1 + 1e-9) for a, b in itertools.pairwise(lrs))
    assert all(0 < lr <= 1e-3 for lr in lrs)


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_min_lr_holds_beyond_the_end(kind: str) -> None:
    schedule = ScheduleConfig.model_validate({"kind": kind, "warmup_steps": 10, "min_lr": 1e-4})
    assert lr_at(STEPS + 50, OPTIMIZER, schedule, STEPS) == pytest.approx(1e-4)
