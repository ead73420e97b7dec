"""Fill any topology's fragments from any other's: each rank reads just the ranges that it needs."""

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dgpt.checkpoint.compatible import check_model, check_tensor
from dgpt.checkpoint.files import open_regular
from dgpt.checkpoint.find import Found, open_checkpoint
from dgpt.checkpoint.format import DTYPES, CheckpointError
from dgpt.checkpoint.hashed import HashedReader, piece_bytes
from dgpt.checkpoint.peers import ALONE, Peers, share_out
from dgpt.checkpoint.read import check_digest, check_header, check_size, problem
from dgpt.checkpoint.slices import Copy, Ranges, copies
from dgpt.config import LoopConfig
from dgpt.fragments import Fragment
from dgpt.storage import Place

BUFFER_BYTES = 16 << 20
LONG_ROW_BYTES = 64 << 10  # rows from here on are read one by one, shorter ones with the gaps between them
THREADS = 4  # of a rank: hashing one file is slower than most file systems


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
    config: LoopConfig,
    *,
    states: Collection[str] | None = None,
    verify: Literal["touched", "none"] = "touched",
    peers: Peers = ALONE,
) -> None:
    """Copy the checkpoint into `fragment.tensor` of every fragment, whatever topology wrote it.

    states: load only these, e.g. {"weight"}; None: all that the fragments name. verify: check the sha256 of each file
    that is read from ("none": only its size and header). peers: the ranks that load now, all of them with this call:
    each file is hashed by one of them. Memory beyond the fragments, THREADS times: a buffer of at most 16 MiB, or of
    one row of a parameter, and a piece of what is only hashed.
    Raises CheckpointError on all peers if the checkpoint is of another model, lacks a tensor or a state, or has a
    damaged file among those that are read. A file is hashed while it is read, in one pass: damage that only its hash
    tells, or a file that fails while it is read, leaves the fragments half loaded. All else is found before.
    """
    with peers.agreed():
        check_model(found, config)
    _load(found, [f for f in fragments if states is None or f.state in states], verify, peers)


def load_weights(path: str | Place, model: nn.Module) -> None:
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
    _load(found, whole, "touched", ALONE)


def _load(found: Found, fragments: list[Fragment], verify: str, peers: Peers) -> None:
    by_file: dict[int, list[_Read]] = {}
    with peers.agreed():
        for read in (read for fragment in fragments for read in _plan(found, fragment)):
            by_file.setdefault(read.file, []).append(read)
    sizes = [file.size for file in found.manifest.files]
    to_hash = share_out(peers.gather(sorted(by_file)), sizes)[peers.rank] if verify == "touched" else []
    with peers.agreed(), ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(partial(_check_start, found), by_file))
    with peers.agreed(), ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(partial(_read_file, found, to_hash), by_file, by_file.values()))


def _check_start(found: Found, number: int) -> None:
    file = found.manifest.files[number]
    check_size(found.folder / file.name, file.size)
    check_header(found.folder / file.name, file, found.manifest)


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
    if _straight(read):
        return 0
    row = block.columns * size
    if row >= LONG_ROW_BYTES:
        return row
    return max(row, min(BUFFER_BYTES, (block.rows - 1) * block.source_stride * size + row))


def _read_file(found: Found, to_hash: list[int], number: int, reads: list[_Read]) -> None:
    entry, digest = found.manifest.files[number], sha256() if number in to_hash else None
    path, buffer = found.folder / entry.name, bytearray(max(map(_buffer_bytes, reads)))
    try:
        with open_regular(path) as opened:
            file = HashedReader(opened, piece_bytes(path), digest)
            for read in sorted(reads, key=lambda read: (read.offset, read.block.source_start)):
                _read_block(file, read, buffer)
            found_hash = file.hexdigest() if digest else entry.sha256
    except OSError as error:
        raise problem(path, error) from None
    check_digest(path, entry.sha256, found_hash)


def _read_block(file: HashedReader, read: _Read, buffer: bytearray) -> None:
    """Read a strided block as a few spans of rows, each no longer than the buffer, and copy out its columns.

    A block without gaps on either side goes straight to where it belongs.
    """
    block, size = read.block, read.dtype.itemsize
    if _straight(read):
        count = block.rows * block.columns
        target = read.target[block.target_start : block.target_start + count].view(torch.uint8).numpy().data
        file.fill(read.offset + block.source_start * size, target)
        return
    rows_each = max(1, (len(buffer) // size - block.columns) // block.source_stride + 1)
    if block.columns * size >= LONG_ROW_BYTES:
        rows_each = 1  # what lies between the rows belongs to other ranks
    for row in range(0, block.rows, rows_each):
        rows = min(rows_each, block.rows - row)
        span = (rows - 1) * block.source_stride + block.columns
        start = block.source_start + row * block.source_stride
        file.fill(read.offset + start * size, memoryview(buffer)[: span * size])
        source = torch.frombuffer(buffer, dtype=read.dtype, count=span)
        source = source.as_strided((rows, block.columns), (block.source_stride, 1))
        begin = read.target.storage_offset() + block.target_start + row * block.target_stride
        read.target.as_strided((rows, block.columns), (block.target_stride, 1), begin).copy_(source)


def _straight(read: _Read) -> bool:
    """Whether the bytes of the file are those of the target, in one piece."""
    block, target = read.block, read.target
    one_piece = block.rows == 1 or block.columns == block.source_stride == block.target_stride
    return one_piece and target.dtype == read.dtype and target.device.type == "cpu" and target.is_contiguous()
