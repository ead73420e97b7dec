"""All fragments of a checkpoint as sorted columns: exact coverage is checked, and ranges are found, without a loop."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dgpt.checkpoint.format import FileEntry, Manifest

Ints = NDArray[np.int64]
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file; the library refuses longer ones


@dataclass(frozen=True)
class FragmentIndex:
    """One row a fragment, sorted by (tensor, state, tp_rank, start): the columns of FragmentTable, and three more."""

    tensor: Ints
    state: Ints
    tp_rank: Ints
    start: Ints
    numel: Ints
    file: Ints  # index into Manifest.files
    offset: Ints  # of the first byte in that file
    group: Ints  # tensor * number of states + state

    @classmethod
    def of(cls, manifest: "Manifest") -> "FragmentIndex":
        """Raises ValueError if a file's rows do not fit the tensors, the states or the file's size."""
        itemsizes = _itemsizes(manifest)
        empty = np.zeros((7, 0), np.int64)
        rows = np.concatenate([empty, *(_columns(i, f, itemsizes) for i, f in enumerate(manifest.files))], axis=1)
        rows = rows[:, np.lexsort(rows[3::-1])]  # tensor first, start last
        tensor, state, tp_rank, start, numel, file, offset = rows
        group = tensor * len(manifest.states) + state
        return cls(tensor, state, tp_rank, start, numel, file, offset, group)

    def find(self, tensor: int, state: int, n_states: int) -> slice:
        """The rows that hold one state of one tensor."""
        group = tensor * n_states + state
        return slice(*np.searchsorted(self.group, (group, group + 1)).tolist())

    def check_tiling(self, manifest: "Manifest") -> None:
        """Raises ValueError unless each part of each state of each tensor is stored exactly once."""
        first = np.flatnonzero(np.diff((self.group, self.tp_rank), prepend=-1).any(axis=0))  # row of each part
        part_numels = self._part_numels(manifest, first)
        end = self.start + self.numel
        expected = np.roll(end, 1)  # a fragment starts where the one before it ends
        expected[first] = 0
        for row in np.flatnonzero(expected != self.start)[:1].tolist():
            low, high = sorted((int(expected[row]), int(self.start[row])))
            problem = "missing" if expected[row] < self.start[row] else "stored twice"
            raise ValueError(f"{self._name(manifest, row)}: elements [{low}, {high}) are {problem}")
        last = np.append(first[1:], len(end))[: len(first)] - 1
        for i in np.flatnonzero(end[last] != part_numels)[:1].tolist():
            raise ValueError(
                f"{self._name(manifest, last[i])}: stored up to element {end[last[i]]} of {part_numels[i]}"
            )

    def _part_numels(self, manifest: "Manifest", first: Ints) -> Ints:
        """The number of elements that each part should have, in the order of `first`."""
        found = set(zip(*(column[first].tolist() for column in (self.tensor, self.state, self.tp_rank)), strict=True))
        numels = []
        for part, numel in _expected_parts(manifest):  # stops at the first that is missing: never longer than `found`
            if part not in found:
                raise ValueError(f"{_name(manifest, *part)} is missing")
            numels.append(numel)
        if len(numels) < len(found):
            extra = min(found - {part for part, _ in _expected_parts(manifest)})
            raise ValueError(f"{_name(manifest, *extra)} is stored, but the tensor has no such state or part")
        return np.array(numels, np.int64)

    def _name(self, manifest: "Manifest", row: int) -> str:
        return _name(manifest, int(self.tensor[row]), int(self.state[row]), int(self.tp_rank[row]))


def _itemsizes(manifest: "Manifest") -> Ints:
    """(tensors, states): bytes of an element; 0 where the tensor does not have the state."""
    unknown = {state for tensor in manifest.tensors for state in tensor.states} - set(manifest.states)
    if unknown:
        raise ValueError(f"state '{min(unknown)}' of a tensor is not in the list of states")
    rows = [[t.itemsize(state) if state in t.states else 0 for state in manifest.states] for t in manifest.tensors]
    return np.array(rows, np.int64).reshape(len(manifest.tensors), len(manifest.states))


def _columns(number: int, file: "FileEntry", itemsizes: Ints) -> Ints:
    """(7, N): tensor, state, tp_rank, start, numel, file, offset."""
    table = file.fragments
    columns = (table.tensor, table.state, table.tp_rank, table.start, table.numel)
    if len({len(column) for column in columns}) != 1:
        raise ValueError(f"{file.name}: the columns of its fragments have different lengths")
    rows = np.array(columns, np.int64)
    if (rows[:2] >= np.array(itemsizes.shape)[:, None]).any():
        raise ValueError(f"{file.name}: a fragment names a tensor or state that the manifest does not list")
    sizes = rows[4] * itemsizes[rows[0], rows[1]]
    payload = sum(sizes.tolist())  # of Python integers: cannot overflow
    if not 8 <= file.size - payload <= 8 + MAX_HEADER_BYTES:
        raise ValueError(f"{file.name}: fragments of {payload} bytes and a header do not make {file.size} bytes")
    offset = file.size - payload + np.cumsum(sizes) - sizes
    return np.concatenate((rows, np.full((1, len(sizes)), number), offset[None]))


def _expected_parts(manifest: "Manifest") -> Iterator[tuple[tuple[int, int, int], int]]:
    """(tensor, state, tp_rank) and the elements of that part, in the order of the index."""
    order = {state: i for i, state in enumerate(manifest.states)}
    for t, tensor in enumerate(manifest.tensors):
        for s in sorted(order[state] for state in tensor.states):
            for tp_rank in range(tensor.tp_size):
                yield (t, s, tp_rank), tensor.part_numel


def _name(manifest: "Manifest", tensor: int, state: int, tp_rank: int) -> str:
    entry = manifest.tensors[tensor]
    return f"{manifest.states[state]} of '{entry.name}', part {tp_rank} of {entry.tp_size}"
