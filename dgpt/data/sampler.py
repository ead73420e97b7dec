"""Which tokens sample number i holds: a pure function of (data set, seed, i), in O(1), for whole arrays of i at once.

A sample is a window of seq_len + 1 tokens of one source; windows of a source lie at multiples of seq_len, so each token
is a target once in an epoch. `Blend` says which source sample i comes from and how many came from it before; a keyed
permutation of the source's windows says which window that is, another one in each epoch of the source.
"""

import heapq
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Keys = NDArray[np.uint64]

LONGEST_PERIOD = 1 << 17
ROUNDS = 6


class Blend:
    """An exact blend of sources: after any number i of samples, source s has had i * share[s], to less than one.

    Shares are the weights as multiples of 1 / period, for the period up to LONGEST_PERIOD that fits best (of weights
    0.7, 0.2, 0.1 it is 10, without error). Within a period samples are dealt by earliest deadline: the j-th sample of s
    may not come before position floor(j / share) nor after ceil((j + 1) / share), which always works out (Tijdeman,
    "The chairman assignment problem", Discrete Mathematics 32, 1980).
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.counts = _whole_shares(np.asarray(weights, np.float64))  # samples of each source in a period
        self.period = int(self.counts.sum())
        self._source = _deal(self.counts.tolist())  # source of each position of a period
        self._rank = np.empty(self.period, np.int64)  # of that position among those of its source
        for s, count in enumerate(self.counts):
            self._rank[self._source == s] = np.arange(count)

    def locate(self, samples: Integers) -> tuple[Integers, Integers]:
        """Source of each sample, and how many samples of that source come before it."""
        periods, positions = np.divmod(samples, self.period)
        source = self._source[positions]
        return source, periods * self.counts[source] + self._rank[positions]


class Sampler:
    """Sample number -> (source, first token), over the windows of all sources.

    Sources without a window must have weight 0.
    """

    def __init__(self, n_tokens: Sequence[int], seq_len: int, seed: int, weights: Sequence[float]) -> None:
        """weights: of the sources; all 0 means by number of windows."""
        self.seq_len, self.seed = seq_len, seed
        self.n_windows = np.array([max(0, n - 1) // seq_len for n in n_tokens], np.int64)
        self.blend = Blend(weights if any(weights) else self.n_windows.tolist())

    def locate(self, samples: Integers) -> tuple[Integers, Integers]:
        """Source and first token of each sample: the sample is the seq_len + 1 tokens from there."""
        source, before = self.blend.locate(samples)
        epoch, i = np.divmod(before, self.n_windows[source])
        return source, self.seq_len * permute(i, self.n_windows[source], _keys(self.seed, source, epoch))

    def samples_before_repeat(self) -> int:
        """How many samples there are before a window comes a second time."""
        drawn = self.n_windows > 0
        return int(min(self.n_windows[drawn] * self.blend.period // self.blend.counts[drawn], default=0))

    def epochs(self, samples: int) -> list[float]:
        """How often each source has been gone through before sample number `samples`."""
        done = self.blend.counts * (samples / self.blend.period)
        return [float(d / n) if n else 0.0 for d, n in zip(done, self.n_windows, strict=True)]


def shuffle(i: Integers, n: int, seed: int) -> Integers:
    """Which of n items comes as number i (k,): all of them, in another order in each pass."""
    epoch, position = np.divmod(i, n)
    return permute(position, np.full_like(i, n), _keys(seed, np.zeros_like(i), epoch))


def permute(i: Integers, n: Integers, key: Keys) -> Integers:
    """Element i of the permutation of [0, n) that `key` names; all of shape (k,).

    A Feistel network permutes the smallest power of two that holds n; where its output is not below n it is applied
    again, until it is (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
    """
    out = _feistel(i.astype(np.uint64), n, key)
    while (outside := out >= n.astype(np.uint64)).any():
        out[outside] = _feistel(out[outside], n[outside], key[outside])
    return out.astype(np.int64)


def _feistel(x: Keys, n: Integers, key: Keys) -> Keys:
    """A bijection of [0, 2^bits), bits = the length of n - 1, at least 2: halves are changed in turn, by the other."""
    bits = np.maximum(2, np.frexp((n - 1).astype(np.float64))[1]).astype(np.uint64)  # exact below 2^53
    low_bits = bits >> np.uint64(1)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << (bits - low_bits)) - np.uint64(1)
    low, high = x & low_mask, x >> low_bits
    for step in range(0, ROUNDS, 2):
        low = low ^ (_mix(high + key + np.uint64(step)) & low_mask)
        high = high ^ (_mix(low + key + np.uint64((step + 1) << 32)) & high_mask)
    out: Keys = high << low_bits | low
    return out


def _keys(seed: int, source: Integers, epoch: Integers) -> Keys:
    key = _mix(np.full(len(source), seed % (1 << 64), np.uint64))
    key = _mix(key ^ source.astype(np.uint64))
    return _mix(key ^ epoch.astype(np.uint64))


def _mix(x: Keys) -> Keys:
    """Finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), after its increment; arithmetic is modulo 2^64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _whole_shares(weights: NDArray[np.float64]) -> Integers:
    """Integers in the proportion of `weights`, as exactly as a sum up to LONGEST_PERIOD allows; no weight gets none."""
    if not weights.any():
        return np.ones(len(weights), np.int64)  # nothing to draw from
    shares = weights / weights.sum()
    periods = np.arange(1, LONGEST_PERIOD + 1)
    counts = np.maximum(np.rint(shares[:, None] * periods), shares[:, None] > 0)  # (sources, periods)
    largest = int(np.argmax(shares))
    counts[largest] = 0
    counts[largest] = periods - counts.sum(axis=0)
    drift = np.abs(counts / periods - shares[:, None]).max(axis=0)  # samples off, for each sample drawn
    drift[counts[largest] < 1] = np.inf
    shortest_of_best = int(np.argmax(drift <= drift.min() + 1e-15))
    return np.asarray(counts[:, shortest_of_best], np.int64)


def _deal(counts: list[int]) -> Integers:
    """Source of each position of a period: of those whose next sample may come, the one with the nearest deadline."""
    period = sum(counts)
    waiting = [(0, s, 0) for s, count in enumerate(counts) if count]  # (position from which it may come, source, rank)
    ready: list[tuple[int, int, int]] = []  # (deadline, source, rank)
    heapq.heapify(waiting)
    dealt = np.empty(period, np.int64)
    for position in range(period):
        while waiting and waiting[0][0] <= position:
            _, s, rank = heapq.heappop(waiting)
            heapq.heappush(ready, (math.ceil((rank + 1) * period / counts[s]), s, rank))
        _, s, rank = heapq.heappop(ready)
        dealt[position] = s
        heapq.heappush(waiting, ((rank + 1) * period // counts[s], s, rank + 1))
    return dealt
