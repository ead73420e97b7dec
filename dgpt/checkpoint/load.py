"""Fill any topology's fragments from any other's: each rank reads just the ranges that it needs."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dgpt.checkpoint.compatible import check_model, check_tensor
from dgpt.checkpoint.files import open_regular
from dgpt.checkpoint.find import Found, open_checkpoint
from dgpt.checkpoint.format import DTYPES, CheckpointError
from dgpt.checkpoint.read import check_hash, check_header, check_size, damaged
from dgpt.checkpoint.slices import Copy, Ranges, copies
from dgpt.config import RunConfig
from dgpt.fragments import Fragment

BUFFER_BYTES = 32 << 20


@dataclass(frozen=True)
class _Read:
    """One block of a file that goes to one block of a wanted tensor."""

    file: int
    offset: int  # of the source fragment's first byte in the file
    block: Copy
    dtype: torch.dtype
    target: Tensor  # (numel,)


def load(
    found: Found,
    fragments: Iterable[Fragment],
    config: RunConfig,
    *,
    states: Collection[str] | None = None,
    verify: Literal["touched", "none"] = "touched",
) -> None:
    """Copy the checkpoint into `fragment.tensor` of every fragment, whatever topology wrote it.

    states: load only these, e.g. {"weight"}; None: all that the fragments name. verify: check the sha256 of each file
    that this rank reads from ("none": only its size and header). Memory beyond the fragments: one buffer of at most
    32 MiB or one row of a parameter.
    Raises CheckpointError, before anything is written, if the checkpoint is of another model, lacks a tensor or a
    state, or has a damaged file among those that this rank reads.
    """
    check_model(found, config)
    _load(found, [f for f in fragments if states is None or f.state in states], verify)


def load_weights(path: str | Path, model: nn.Module) -> None:
    """Fill a whole model, in one process and of any dtype, from a checkpoint of any topology.

    path: the checkpoint, or a run folder (its newest one). Raises as `load`.
    """
    found = open_checkpoint(path)
    parameters = dict(model.named_parameters())
    for entry in found.manifest.tensors:
        if entry.name not in parameters:
            fix = "build the model from the checkpoint's own config (dgpt.checkpoint.read_config)"
            raise CheckpointError(found.folder, f"holds '{entry.name}', which this model does not have", fix=fix)
    whole = [Fragment(name, "weight", tuple(p.shape), None, 0, 1, 0, p.detach().view(-1))
             for name, p in parameters.items()]  # fmt: skip
    _load(found, whole, "touched")


def _load(found: Found, fragments: list[Fragment], verify: str) -> None:
    folder, manifest = found.folder, found.manifest
    reads = [read for fragment in fragments for read in _plan(found, fragment)]
    by_file: dict[int, list[_Read]] = {}
    for read in reads:
        by_file.setdefault(read.file, []).append(read)
    for number in by_file:
        file = manifest.files[number]
        check_size(folder / file.name, file.size)
        check_header(folder / file.name, file, manifest)
        if verify == "touched":
            check_hash(folder / file.name, file.sha256)
    buffer = bytearray(max((_buffer_bytes(read) for read in reads), default=0))
    for number, of_file in by_file.items():
        _read_file(folder / manifest.files[number].name, of_file, buffer)


def _plan(found: Found, f: Fragment) -> list[_Read]:
    tensor, state = check_tensor(found, f)
    manifest = found.manifest
    entry, index = manifest.tensors[tensor], manifest.index
    rows = index.find(tensor, state, len(manifest.states))
    stored = Ranges.of(f.shape, entry.tp_axis, entry.tp_size, index.tp_rank[rows], index.start[rows],
                       index.numel[rows])  # fmt: skip
    one = np.array([[f.tp_rank], [f.start], [f.tensor.numel()]])
    wanted = Ranges.of(f.shape, f.tp_axis, f.tp_size, *one)
    blocks = copies(stored, wanted)
    assert sum(block.rows * block.columns for block in blocks) == f.tensor.numel(), f"{f.name}: range outside the part"
    files, offsets = index.file[rows].tolist(), index.offset[rows].tolist()
    dtype = DTYPES[entry.states[f.state]]
    return [_Read(files[b.source], offsets[b.source], b, dtype, f.tensor.detach()) for b in blocks]


def _buffer_bytes(read: _Read) -> int:
    """The whole span of the block up to BUFFER_BYTES, and one row at least."""
    block, size = read.block, read.dtype.itemsize
    row = block.columns * size
    return max(row, min(BUFFER_BYTES, (block.rows - 1) * block.source_stride * size + row))


def _read_file(path: Path, reads: list[_Read], buffer: bytearray) -> None:
    try:
        with open_regular(path) as file:
            for read in sorted(reads, key=lambda read: (read.offset, read.block.source_start)):
                _read_block(file, read, buffer)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None


def _read_block(file: BinaryIO, read: _Read, buffer: bytearray) -> None:
    """Read a strided block as a few spans of rows, each no longer than the buffer, and copy out its columns."""
    block, size = read.block, read.dtype.itemsize
    rows_each = max(1, (len(buffer) // size - block.columns) // block.source_stride + 1)
    for row in range(0, block.rows, rows_each):
        rows = min(rows_each, block.rows - row)
        span = (rows - 1) * block.source_stride + block.columns
        file.seek(read.offset + (block.source_start + row * block.source_stride) * size)
        if file.readinto(memoryview(buffer)[: span * size]) != span * size:  # type: ignore[attr-defined]
            raise OSError("ended while it was read")
        source = torch.frombuffer(buffer, dtype=read.dtype, count=span)
        source = source.as_strided((rows, block.columns), (block.source_stride, 1))
        begin = read.target.storage_offset() + block.target_start + row * block.target_stride
        read.target.as_strided((rows, block.columns), (block.target_stride, 1), begin).copy_(source)
