"""Tokenise one unit of documents and commit its result as one file: the step that runs in parallel and is resumed by.

A unit file is a header of int64 (the fields of UnitCounts), then of the train split and then of the val split the token
ids, then of both the lengths of the documents in tokens (int64).
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgpt.config import SourceConfig
from dgpt.data.blocks import is_held_out
from dgpt.data.files import write_atomically
from dgpt.data.sources import Unit, documents
from dgpt.data.tokenizer import Tokenizer, Tokens, load_tokenizer

SPLITS = ("train", "val")
ENCODED_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class UnitCounts:
    """What a unit holds."""

    rows: int  # documents that the source gave, empty ones included; known for data sets alone
    text_bytes: int
    train_tokens: int
    val_tokens: int
    train_documents: int
    val_documents: int

    def tokens(self, split: str) -> int:
        return self.train_tokens if split == "train" else self.val_tokens


HEADER_BYTES = 8 * len(fields(UnitCounts))


@dataclass(frozen=True)
class Tokenise:
    """The settings that a worker process needs; calling it once gives the worker's function."""

    work_folder: Path  # with the tokenizer, and for the unit files
    sources: tuple[SourceConfig, ...]
    val_fraction: float

    def __call__(self) -> "UnitWorker":
        return UnitWorker(self, load_tokenizer(self.work_folder))


class UnitWorker:
    """Tokenises units, one after the other, in one process."""

    def __init__(self, settings: Tokenise, tokenizer: Tokenizer) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        self._end = np.array([tokenizer.eod_id], tokenizer.dtype)

    def __call__(self, unit: Unit) -> tuple[UnitCounts, int]:
        """Write the unit's file; gives its counts and the bytes on disk that it was read from."""
        tokens: dict[bool, list[Tokens]] = {False: [], True: []}  # held out? -> ids of the documents, each with its end
        text_bytes = 0
        for texts in _batches(documents(unit, self._settings.sources[unit.source])):
            for text, ids in zip(texts, self._tokenizer.encode_arrays(texts), strict=True):
                data = text.encode()
                text_bytes += len(data)
                tokens[is_held_out(data, self._settings.val_fraction)] += [ids, self._end]
        rows = sum(len(block.texts or ()) for block in unit.blocks)
        counts = self._write(unit, tokens[False], tokens[True], rows, text_bytes)
        return counts, unit.disk_bytes

    def _write(self, unit: Unit, train: list[Tokens], val: list[Tokens], rows: int, text_bytes: int) -> UnitCounts:
        lengths = [np.array([len(ids) + 1 for ids in split[::2]], np.int64) for split in (train, val)]
        sums = [int(length.sum()) for length in lengths]
        counts = UnitCounts(rows, text_bytes, sums[0], sums[1], len(lengths[0]), len(lengths[1]))
        path = unit_path(self._settings.work_folder, unit.source, unit.number)
        write_atomically(path, [np.array(astuple(counts), np.int64), *train, *val, *lengths])
        return counts


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Documents in groups of about ENCODED_AT_ONCE characters: calls cost less, and memory stays bounded."""
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= ENCODED_AT_ONCE:
            yield held
            held, size = [], 0
    if held:
        yield held


def unit_path(work_folder: Path, source: int, number: int) -> Path:
    """Where the result of a unit lies."""
    return work_folder / f"{source:05d}-{number:010d}.unit"


def read_counts(path: Path) -> UnitCounts:
    """Header of a unit file."""
    with open(path, "rb") as file:
        return UnitCounts(*np.frombuffer(file.read(HEADER_BYTES), np.int64).tolist())


def read_unit(path: Path, split: str, dtype: np.dtype[np.uint16 | np.uint32]) -> tuple[Tokens, NDArray[np.int64]]:
    """Token ids (n,) and lengths of the documents (d,) of one split of a unit, memory-mapped."""
    counts = read_counts(path)
    data = np.memmap(path, np.uint8, "r")
    sizes = [counts.train_tokens * dtype.itemsize, counts.val_tokens * dtype.itemsize,
             counts.train_documents * 8, counts.val_documents * 8]  # fmt: skip
    edges = HEADER_BYTES + np.cumsum([0, *sizes])
    k = SPLITS.index(split)
    return data[edges[k] : edges[k + 1]].view(dtype), data[edges[k + 2] : edges[k + 3]].view(np.int64)
