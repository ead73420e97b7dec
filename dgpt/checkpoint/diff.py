"""What differs between two checkpoints, tensor by tensor, whatever topologies wrote them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpt.checkpoint.find import Found
from dgpt.checkpoint.progress import Advance, byte_bar
from dgpt.checkpoint.whole import check_files, files_of, read_tensor, tensor_bytes

CHUNK_ELEMENTS = 1 << 20  # converted to fp64 at once


@dataclass(frozen=True)
class Distance:
    """Two tensors a and b of one shape. Where both are NaN, or the same infinity, they do not differ."""

    equal: bool  # every bit; so of the same dtype
    largest: float  # max |a - b|, NaN if one of them is not a number somewhere
    squared: float  # sum of (a - b)^2
    reference: float  # sum of b^2

    @property
    def relative(self) -> float:
        """|a - b| / |b|, the L2 norms."""
        if self.squared == 0:
            return 0.0
        return math.sqrt(self.squared / self.reference) if self.reference else math.inf

    def __add__(self, other: "Distance") -> "Distance":
        """Of two pairs of tensors together."""
        nan = math.isnan(self.largest) or math.isnan(other.largest)
        largest = math.nan if nan else max(self.largest, other.largest)
        return Distance(self.equal and other.equal, largest, self.squared + other.squared,
                        self.reference + other.reference)  # fmt: skip


NOTHING = Distance(True, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Compared:
    """One state of one tensor, as both checkpoints have it."""

    state: str
    name: str
    distance: Distance
    dtypes: str  # as "F32", or "F32, BF16" where they differ


@dataclass(frozen=True)
class Difference:
    compared: list[Compared]  # the most different first
    unmatched: list[str]  # what only one has, and shapes that differ, a line each

    @property
    def equal(self) -> bool:
        """Whether both hold the same tensors, bit for bit."""
        return not self.unmatched and all(entry.distance.equal for entry in self.compared)

    def states(self) -> Iterator[tuple[str, list[Compared], Distance]]:
        """Each state with its tensors, and with their distance as if they were one tensor."""
        for state in dict.fromkeys(entry.state for entry in self.compared):
            entries = [entry for entry in self.compared if entry.state == state]
            yield state, entries, sum((entry.distance for entry in entries), NOTHING)


def diff(a: Found, b: Found, *, progress: bool = False) -> Difference:
    """Compare every tensor. Verifies the files first: a flipped bit is damage, not a difference.

    Memory: two whole parameters of one state, and two more while parts along axis 1 are put together.
    Raises CheckpointError if one of them is damaged.
    """
    pairs, unmatched = _match(a, b)
    states = list(dict.fromkeys(state for *_, state in pairs))
    both = [(found, files_of(found, states)) for found in (a, b)]
    total = sum(tensor_bytes(found, states) + sum(file.size for file in files) for found, files in both)
    with byte_bar("comparing", total, enabled=progress) as advance:
        for found, files in both:
            check_files(found, files, advance)
        compared = [_compare(a, b, *pair, advance) for pair in pairs]
    return Difference(sorted(compared, key=_most_different_first), unmatched)


def distance(a: Tensor, b: Tensor) -> Distance:
    """Of two tensors of one shape, computed in fp64."""
    equal, total = a.dtype == b.dtype, NOTHING
    for x, y in zip(torch.split(a.flatten(), CHUNK_ELEMENTS), torch.split(b.flatten(), CHUNK_ELEMENTS), strict=True):
        equal = equal and torch.equal(x.view(torch.uint8), y.view(torch.uint8))
        x, y = x.double(), y.double()
        difference = (x - y).masked_fill_((x == y) | (x.isnan() & y.isnan()), 0.0)
        total += Distance(equal, difference.abs().max().item(), difference.square_().sum().item(),
                          y.square_().sum().item())  # fmt: skip
    return Distance(equal, total.largest, total.squared, total.reference)


def _match(a: Found, b: Found) -> tuple[list[tuple[int, int, str]], list[str]]:
    """(index in a, index in b, state) of what both have in one shape, and what stands in the way of the rest."""
    ours, theirs = a.manifest.tensors, b.manifest.tensors
    unmatched = [f"only in a: {t.name}" for t in ours if t.name not in b.manifest.tensor_ids]
    unmatched += [f"only in b: {t.name}" for t in theirs if t.name not in a.manifest.tensor_ids]
    pairs, lonely = [], dict[tuple[str, str], int]()
    for i, tensor in enumerate(ours):
        j = b.manifest.tensor_ids.get(tensor.name)
        if j is None:
            continue
        other = theirs[j]
        if tensor.shape != other.shape:
            unmatched.append(f"shape of {tensor.name}: {list(tensor.shape)} in a, {list(other.shape)} in b")
            continue
        pairs += [(i, j, state) for state in tensor.states if state in other.states]
        for state in tensor.states.keys() ^ other.states.keys():
            key = "a" if state in tensor.states else "b", state
            lonely[key] = lonely.get(key, 0) + 1
    unmatched += [f"only in {side}: {state} of {count} tensors" for (side, state), count in sorted(lonely.items())]
    return sorted(pairs, key=lambda pair: a.manifest.states.index(pair[2])), unmatched


def _compare(a: Found, b: Found, i: int, j: int, state: str, advance: Advance) -> Compared:
    entry = a.manifest.tensors[i]
    dtypes = dict.fromkeys((entry.states[state], b.manifest.tensors[j].states[state]))
    x, y = read_tensor(a, i, state, advance), read_tensor(b, j, state, advance)
    return Compared(state, entry.name, distance(x, y), ", ".join(dtypes))


def _most_different_first(entry: Compared) -> tuple[bool, float, str]:
    relative = entry.distance.relative
    return entry.distance.equal, -math.inf if math.isnan(relative) else -relative, entry.name
