"""A checkpoint of weights alone, each parameter whole, written from a function that gives one at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from uuid import uuid4

import torch
from torch import Tensor

import dgpt
from dgpt.checkpoint.format import (
    MANIFEST,
    MANIFEST_HASH,
    FileEntry,
    FragmentTable,
    Manifest,
    MeshEntry,
    Meta,
    TensorEntry,
    safetensors_header,
)
from dgpt.checkpoint.output import Chunks, Write, check_free, new_folder
from dgpt.storage import Place

WEIGHT = "weight"
FILE_BYTES = 4 << 30  # of a file; a larger parameter has one of its own
ALONE = MeshEntry(world_size=1, dp_size=1, tp=1, zero_stage=0)


def whole_entry(name: str, shape: tuple[int, ...], dtype: str) -> TensorEntry:
    """A parameter in one piece; dtype: as safetensors spells it."""
    return TensorEntry(name=name, shape=shape, tp_axis=None, tp_size=1, states={WEIGHT: dtype})  # type: ignore[dict-item]


def in_order(entries: Sequence[TensorEntry]) -> tuple[TensorEntry, ...]:
    """As they are stored: wide elements first, so that each is aligned to its element size."""
    return tuple(sorted(entries, key=lambda entry: -entry.itemsize(WEIGHT)))


def weight_bytes(entry: TensorEntry) -> int:
    return entry.part_numel * entry.itemsize(WEIGHT)


def new_checkpoint(
    output: Place, step: int, meta: Meta, tensors: Sequence[TensorEntry], read: Callable[[TensorEntry], Tensor],
    extra: Mapping[str, bytes], *, epoch: int = 0,
) -> Manifest:  # fmt: skip
    """Write weights to the folder `output`, which must not exist, in format 1, and `extra`, by names, beside them.

    read: gives a parameter in the dtype of its entry; called once for each, wide elements first.
    Raises UserError if `output` exists or cannot be written; then nothing is left.
    """
    check_free(output, step)
    ordered, attempt = in_order(tensors), f"weights-{uuid4().hex}"
    with new_folder(output, attempt, sum(map(weight_bytes, ordered))) as write:
        for name, content in extra.items():
            write(name, iter([content]))
        return _write_weights(write, attempt, step, meta, ordered, read, epoch)


def _write_weights(
    write: Write, attempt: str, step: int, meta: Meta, tensors: tuple[TensorEntry, ...],
    read: Callable[[TensorEntry], Tensor], epoch: int,
) -> Manifest:  # fmt: skip
    """The files, then the manifest that describes them, checked as a reader checks it."""
    entries = []
    for number, group in enumerate(_groups(tensors)):
        name, table = f"rank_{number:05d}.safetensors", _table(tensors, group)
        header = safetensors_header(step, attempt, tensors, (WEIGHT,), table)
        size, digest = write(name, chunks(header, (read(tensors[i]) for i in group)))
        entries.append(FileEntry(name=name, size=size, sha256=digest, fragments=table))
    unchecked = Manifest.model_construct(
        format=1, attempt=attempt, epoch=epoch, created=datetime.now(UTC).replace(microsecond=0),
        dgpt=dgpt.__version__, torch=torch.__version__, step=step, mesh=ALONE, meta=meta, states=(WEIGHT,),
        tensors=tensors, files=tuple(entries),
    )  # fmt: skip
    content = unchecked.model_dump_json().encode()
    manifest = Manifest.model_validate_json(content)
    write(MANIFEST_HASH, iter([f"{sha256(content).hexdigest()}  {MANIFEST}\n".encode()]))
    write(MANIFEST, iter([content]))
    return manifest


def chunks(header: bytes, tensors: Iterator[Tensor]) -> Chunks:
    """The bytes of a safetensors file."""
    yield header
    for tensor in tensors:
        yield tensor.contiguous().flatten().view(torch.uint8).numpy().data


def _groups(tensors: Sequence[TensorEntry]) -> list[list[int]]:
    """Which tensors go into which file."""
    groups: list[list[int]] = [[]]
    room = FILE_BYTES
    for i, tensor in enumerate(tensors):
        if weight_bytes(tensor) > room and groups[-1]:
            groups.append([])
            room = FILE_BYTES
        groups[-1].append(i)
        room -= weight_bytes(tensor)
    return groups


def _table(tensors: Sequence[TensorEntry], group: Sequence[int]) -> FragmentTable:
    zeros = (0,) * len(group)
    return FragmentTable(tensor=tuple(group), state=zeros, tp_rank=zeros, start=zeros,
                         numel=tuple(tensors[i].part_numel for i in group))  # fmt: skip
