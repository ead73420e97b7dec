"""Whole tensors of a checkpoint, one at a time, whatever topology cut them."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dgpt.checkpoint.files import CHUNK_BYTES, open_regular
from dgpt.checkpoint.find import Found
from dgpt.checkpoint.format import DTYPES, FileEntry
from dgpt.checkpoint.progress import Advance
from dgpt.checkpoint.read import check_hash, check_header, problem
from dgpt.storage import Place, RemotePath

THREADS = 8  # an object store answers many requests at once, each of them slowly


class _Piece(NamedTuple):
    """A range of a file, and the bytes of memory that it fills."""

    path: Place
    offset: int
    memory: memoryview


def files_of(found: Found, states: Collection[str]) -> list[FileEntry]:
    """The files that hold any of `states`."""
    index, wanted = found.manifest.index, [found.manifest.states.index(state) for state in states]
    numbers = np.unique(index.file[np.isin(index.state, wanted)])
    return [found.manifest.files[number] for number in numbers.tolist()]


def check_files(found: Found, files: Collection[FileEntry], advance: Advance) -> None:
    """Raises CheckpointError unless every file has the header and the sha256 that it should have."""

    def check(file: FileEntry) -> None:
        check_header(found.folder / file.name, file, found.manifest)
        check_hash(found.folder / file.name, file.sha256, advance)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(check, files))


def tensor_bytes(found: Found, states: Collection[str]) -> int:
    """Bytes of all tensors in these states."""
    held = ((t, state) for t in found.manifest.tensors for state in states if state in t.states)
    return sum(tensor.part_numel * tensor.tp_size * tensor.itemsize(state) for tensor, state in held)


def read_tensor(found: Found, tensor: int, state: str, advance: Advance) -> Tensor:
    """One state of one parameter in its own shape. Peak memory: twice the tensor if it was cut along axis 1.

    Checks no hash: `check_files` does, once for all tensors. Raises CheckpointError if a file cannot be read.
    """
    m = found.manifest
    entry, index = m.tensors[tensor], m.index
    rows = index.find(tensor, m.states.index(state), len(m.states))
    flat = torch.empty(entry.tp_size * entry.part_numel, dtype=DTYPES[entry.states[state]])
    memory, pieces, begin = flat.view(torch.uint8).numpy().data, [], 0
    for file, offset, numel in zip(index.file[rows], index.offset[rows], index.numel[rows], strict=True):
        size = int(numel) * flat.itemsize  # the rows of the index tile part after part, so the bytes follow each other
        pieces += _cut(found.folder / m.files[file].name, int(offset), memory[begin : begin + size])
        begin += size
    with ThreadPoolExecutor(THREADS if isinstance(found.folder, RemotePath) else 1) as pool:
        list(pool.map(_read, pieces))
    advance(flat.nbytes)
    return _join(flat, entry.shape, entry.tp_axis, entry.tp_size)


def _cut(path: Place, offset: int, memory: memoryview) -> list[_Piece]:
    return [_Piece(path, offset + i, memory[i : i + CHUNK_BYTES]) for i in range(0, len(memory), CHUNK_BYTES)]


def _read(piece: _Piece) -> None:
    path, offset, memory = piece
    try:
        if isinstance(path, RemotePath):
            memory[:] = path.read_range(offset, offset + len(memory))
            return
        with open_regular(path) as file:
            file.seek(offset)
            if file.readinto(memory) != len(memory):  # type: ignore[attr-defined]
                raise OSError("ended while it was read")
    except OSError as error:
        raise problem(path, error) from None


def _join(parts: Tensor, shape: tuple[int, ...], axis: int | None, tp_size: int) -> Tensor:
    """Parts of a row-major tensor, one after the other; blocks of rows are the tensor already."""
    if axis != 1:
        return parts.view(shape)
    return parts.view(tp_size, shape[0], shape[1] // tp_size, *shape[2:]).transpose(0, 1).reshape(shape)
