"""Prepared data on disk: token shards, document boundaries and their index (docs/data.md has the format), read-only.

The tokens of a source and split are one long row, cut into shard files that are memory-mapped: every process of a
machine shares the same pages.
"""

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dgpt.data.index import check_index
from dgpt.data.tokenizer import Tokenizer, Tokens
from dgpt.data.verify import verify_changed
from dgpt.errors import UserError

FORMAT, VERSION = "dgpt-tokens", 1
INDEX_FILE = "index.json"
Split = Literal["train", "val"]


@dataclass(frozen=True)
class SourceTokens:
    """The tokens of one source in one split."""

    name: str
    n_tokens: int
    n_documents: int
    shard_tokens: int  # of every shard but the last
    shards: list[Any]  # np.memmap of each shard
    document_files: list[Path]

    def gather(self, starts: NDArray[np.int64], length: int) -> Tokens:
        """Tokens [start, start + length) of each start: (N, length). Starts + length must not pass n_tokens."""
        out = np.empty((len(starts), length), self.shards[0].dtype if self.shards else np.uint16)
        shards, offsets = np.divmod(starts, self.shard_tokens)
        for row, shard, offset in zip(out, shards.tolist(), offsets.tolist(), strict=True):
            part = self.shards[shard][offset : offset + length]
            row[: len(part)] = part
            filled = len(part)
            while filled < length:  # the window goes on in the next shard
                shard += 1
                part = self.shards[shard][: length - filled]
                row[filled : filled + len(part)] = part
                filled += len(part)
        return out

    def will_need(self, starts: NDArray[np.int64], length: int) -> None:
        """Ask the kernel to read these windows from the disk in the background."""
        shards, offsets = np.divmod(starts, self.shard_tokens)
        for shard, offset in zip(shards.tolist(), offsets.tolist(), strict=True):
            tokens = self.shards[shard]
            start = offset * tokens.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
            stop = min((offset + length) * tokens.itemsize, tokens.nbytes)
            tokens._mmap.madvise(mmap.MADV_WILLNEED, start, stop - start)

    @cached_property
    def document_starts(self) -> NDArray[np.uint64]:
        """Position of the first token of each document, (n_documents,)."""
        parts = [np.fromfile(path, "<u8") for path in self.document_files]
        return np.concatenate(parts) if parts else np.empty(0, np.uint64)


@dataclass(frozen=True)
class TokenData:
    """A split of a prepared folder."""

    path: Path
    split: Split
    vocab_size: int
    eod_id: int
    dtype: np.dtype[np.uint16 | np.uint32]
    tokenizer_hash: str
    sources: tuple[SourceTokens, ...]
    weights: tuple[float, ...]  # of the sources; all 0: by token count

    @property
    def n_tokens(self) -> int:
        return sum(source.n_tokens for source in self.sources)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise UserError where `tokenizer` is not the one that made these tokens."""
        if (tokenizer.hash, tokenizer.vocab_size) != (self.tokenizer_hash, self.vocab_size):
            raise UserError(
                f"tokenizer {tokenizer.hash[:12]} of {tokenizer.vocab_size} ids does not fit the shards in "
                f"'{self.path}', which {self.tokenizer_hash[:12]} of {self.vocab_size} ids made",
                rule="a run keeps the tokenizer of its data",
                fix="give the data.path that this run was trained on, or start a new run_dir")  # fmt: skip


def open_split(path: str | Path, split: Split, *, weights: Sequence[float] | None = None,
               verify: bool = True) -> TokenData:  # fmt: skip
    """Memory-map a split of a prepared folder.

    weights: data.sources[*].weight, in the order of the sources; None or all 0 means by token count.
    verify: hash the files that changed since they were last checked (verified.json); normally none. On many ranks let
        one verify before the others open.
    Raises UserError for a folder that is not prepared, or a missing or corrupted file.
    """
    path = Path(path)
    index = read_index(path)
    check_sizes(path, index)
    if verify:
        verify_changed(path, index["files"])
    dtype = np.dtype(index["dtype"])
    sources = tuple(_open(path, source, split, dtype, index["shard_tokens"]) for source in index["sources"])
    meta = index["tokenizer"]
    weights = tuple(weights) if weights is not None and any(weights) else (0.0,) * len(sources)
    if len(weights) != len(sources):
        raise UserError(f"data.sources gives {len(weights)} weights, but '{path}' holds {len(sources)} sources",
                        rule="weights belong to the sources that were prepared, in their order",
                        fix=f"list these sources: {', '.join(source.name for source in sources)}")  # fmt: skip
    return TokenData(path, split, meta["vocab_size"], meta["eod_id"], dtype, meta["hash"], sources, weights)


def read_index(path: Path) -> dict[str, Any]:
    """The index of a prepared folder. Raises UserError where there is none that this version reads."""
    try:
        index: dict[str, Any] = json.loads((path / INDEX_FILE).read_bytes())
        if (index["format"], index["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {index['format']} version {index['version']}")
        check_index(index)
    except FileNotFoundError:
        raise UserError(f"data.path = '{path}' holds no prepared data",
                        rule=f"a prepared folder has an {INDEX_FILE}",
                        fix="run `dgpt prepare` with this file first, or correct data.path") from None  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"data.path: '{path / INDEX_FILE}' cannot be read: {error}",
                        rule=f"this dgpt reads {FORMAT} version {VERSION}",
                        fix="prepare the data again into an empty folder") from None  # fmt: skip
    return index


def check_sizes(path: Path, index: dict[str, Any]) -> None:
    """Raise UserError for a missing file or one of another size: cheap, so every process does it."""
    for name, record in index["files"].items():
        file = path / name
        size = file.stat().st_size if file.exists() else None
        if size != record["bytes"]:
            found = "missing" if size is None else f"{size} bytes"
            raise UserError(f"data.path: file '{file}' is {found}; expected {record['bytes']} bytes "
                            f"of sha256 {record['sha256']}",
                            rule=f"all files that {INDEX_FILE} lists are there and whole",
                            fix="copy it again, or prepare the data again into an empty folder")  # fmt: skip


def _open(path: Path, source: dict[str, Any], split: str, dtype: np.dtype[Any], shard_tokens: int) -> SourceTokens:
    entry = source["splits"][split]
    return SourceTokens(
        name=source["name"],
        n_tokens=entry["tokens"],
        n_documents=entry["documents"],
        shard_tokens=shard_tokens,
        shards=[np.memmap(path / shard["file"], dtype, "r") for shard in entry["shards"]],
        document_files=[path / shard["documents_file"] for shard in entry["shards"]],
    )
