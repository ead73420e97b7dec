"""From unit files, in their order, to shards: every shard but the last of a split holds exactly `shard_tokens` tokens.

Each shard is committed by itself, and what is there already is kept. Units go when the shards that need them are
written, so the disk never holds much more than one copy of the tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from dgpt.data.files import FileRecord, sha256_of, write_atomically, write_json, writing
from dgpt.data.preparation import Preparation
from dgpt.data.shards import FORMAT, INDEX_FILE, VERSION
from dgpt.data.tokenise import UnitCounts, read_unit, unit_path
from dgpt.data.tokenizer import Tokenizer, Tokens
from dgpt.data.verify import write_stamp


def write_index(job: Preparation, counts: Sequence[Sequence[UnitCounts]], tokenizer: Tokenizer,
                console: Console) -> None:  # fmt: skip
    """Write all shards, then the index: from then on the folder is prepared."""
    files: dict[str, FileRecord] = {}
    tokens = sum(unit.train_tokens + unit.val_tokens for of_source in counts for unit in of_source)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("writing shards", total=tokens)
        sources = [_write_source(job, number, counts[number], tokenizer, files, partial(progress.advance, task))
                   for number in range(len(counts))]  # fmt: skip
    for name in tokenizer.save(job.folder):
        files[name] = sha256_of(job.folder / name)
    meta = {"hash": tokenizer.hash, "vocab_size": tokenizer.vocab_size, "eod_id": tokenizer.eod_id}
    records = {name: vars(record) for name, record in files.items()}
    write_stamp(job.folder, records)
    write_json(job.folder / INDEX_FILE, {
        "format": FORMAT, "version": VERSION, "dtype": tokenizer.dtype.name, "byte_order": "little",
        "shard_tokens": job.config.data.shard_tokens, "tokenizer": meta, "sources": sources, "files": records,
        "preparation": job.identity()})  # fmt: skip


def _write_source(job: Preparation, number: int, counts: Sequence[UnitCounts], tokenizer: Tokenizer,
                  files: dict[str, FileRecord], advance: Callable[[int], None]) -> dict[str, Any]:  # fmt: skip
    name = job.names[number]
    with writing(job.folder / name):
        (job.folder / name).mkdir(exist_ok=True)
    splits = {}
    for split in ("val", "train"):  # the larger one last: it lets go of the units as it goes
        shards = SplitShards(job, number, split, counts, tokenizer.dtype)
        splits[split] = shards.write(files, advance, remove_units=split == "train")
    return {"name": name, "text_bytes": sum(unit.text_bytes for unit in counts), "splits": splits}


class SplitShards:
    """The shards of one split of one source."""

    def __init__(self, job: Preparation, source: int, split: str, counts: Sequence[UnitCounts],
                 dtype: np.dtype[np.uint16 | np.uint32]) -> None:  # fmt: skip
        self.folder, self.work, self.shard_tokens = job.folder, job.work, job.config.data.shard_tokens
        self.source, self.name, self.split, self.dtype = source, job.names[source], split, dtype
        # Unit u holds the positions edges[u] to edges[u + 1] of the split.
        self.edges = np.cumsum([0, *(unit.tokens(split) for unit in counts)], dtype=np.int64)
        self._removed = 0

    def write(self, files: dict[str, FileRecord], advance: Callable[[int], None], *,
              remove_units: bool) -> dict[str, Any]:  # fmt: skip
        """Write all shards and record their files in `files`; gives the split's entry in the index."""
        shards = []
        total = int(self.edges[-1])
        for number, start in enumerate(range(0, total, self.shard_tokens)):
            stop = min(start + self.shard_tokens, total)
            shards.append(self._write_shard(number, start, stop, files))
            if remove_units:
                self._remove_units_before(stop)
            advance(stop - start)
        return {"tokens": total, "documents": sum(shard["documents"] for shard in shards), "shards": shards}

    def _write_shard(self, number: int, start: int, stop: int, files: dict[str, FileRecord]) -> dict[str, Any]:
        tokens_file, documents_file = (f"{self.name}/{self.split}_{number:05d}.{kind}" for kind in ("bin", "docs"))
        self._commit(tokens_file, self._tokens(start, stop), files)
        self._commit(documents_file, self._document_starts(start, stop), files)
        documents = files[documents_file].bytes // 8
        return {"tokens": stop - start, "documents": documents, "file": tokens_file, "documents_file": documents_file}

    def _commit(self, name: str, chunks: Iterator[Any], files: dict[str, FileRecord]) -> None:
        path = self.folder / name
        files[name] = sha256_of(path) if path.exists() else write_atomically(path, chunks)

    def _tokens(self, start: int, stop: int) -> Iterator[Tokens]:
        for base, tokens, _ in self._units(start, stop):
            yield tokens[max(0, start - base) : stop - base]

    def _document_starts(self, start: int, stop: int) -> Iterator[NDArray[np.uint64]]:
        """Positions in the split of the first tokens of documents, as little-endian uint64."""
        for base, _, lengths in self._units(start, stop):
            starts = base + np.cumsum([0, *lengths[:-1]], dtype=np.int64)
            yield starts[(starts >= start) & (starts < stop)].astype("<u8")

    def _units(self, start: int, stop: int) -> Iterator[tuple[int, Tokens, NDArray[np.int64]]]:
        """Units that hold some of the tokens `start` to `stop`: their first position, tokens, document lengths."""
        first, last = np.searchsorted(self.edges, start, "right") - 1, np.searchsorted(self.edges, stop, "left")
        for unit in range(first, last):
            if self.edges[unit] < self.edges[unit + 1]:
                tokens, lengths = read_unit(unit_path(self.work, self.source, unit), self.split, self.dtype)
                yield int(self.edges[unit]), tokens, lengths

    def _remove_units_before(self, stop: int) -> None:
        done = int(np.searchsorted(self.edges, stop, "right")) - 1
        for unit in range(self._removed, done):
            unit_path(self.work, self.source, unit).unlink(missing_ok=True)
        self._removed = max(self._removed, done)
