"""Sources: where documents come from, in an order that never changes, cut into units of work."""

import glob
import hashlib
import itertools
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpt.config import SourceConfig
from dgpt.data.blocks import Block, text_blocks
from dgpt.data.readers import SUFFIXES, file_format, reader_for
from dgpt.errors import UserError

STDLIB_SUFFIXES = (".py", ".txt", ".rst")
# tests, what is not of the standard library, and tables of characters that a model would learn by heart
STDLIB_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings"}


@dataclass(frozen=True)
class Unit:
    """What one worker tokenises at a time: blocks of a source, the `number`-th such group of it."""

    source: int
    number: int
    blocks: tuple[Block, ...]

    @property
    def disk_bytes(self) -> int:
        return sum(block.disk_bytes for block in self.blocks)


def source_names(sources: Sequence[SourceConfig]) -> list[str]:
    """A folder name for each source: its `name`, or the last part of its origin; made different where equal."""
    names: list[str] = []
    for source in sources:
        origin = source.builtin or source.dataset or source.path
        stem = re.split(r"[.*?\[]", Path(origin).name)[0] or Path(origin).parent.name
        name = re.sub(r"[^\w-]+", "_", source.name or stem).strip("_") or "source"
        names.append(next(n for n in _candidates(name) if n not in names))
    return names


def find_files(source: SourceConfig) -> list[Path]:
    """Files of a source in order; none for a data set. Raises UserError where there are none, or of unknown format."""
    if source.dataset:
        return []
    files = stdlib_files() if source.builtin else _files_at(source.path)
    if not files:
        raise UserError(f"no documents found in '{source.path or source.builtin}'",
                        rule=f"a path names a file, folder or glob of {' '.join(SUFFIXES)}, each also as .gz or .zst",
                        fix="correct data.sources.path")  # fmt: skip
    return files


def fingerprint(files: Sequence[Path]) -> str:
    """Hash of names, sizes and times of change: another one means other text."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def units(number: int, source: SourceConfig, files: Sequence[Path], unit_bytes: int,
          first: int = 0, skip_rows: int = 0) -> Iterator[Unit]:  # fmt: skip
    """Units of source `number`, of about `unit_bytes` of text. Of a data set only those from unit `first` on, with the
    `skip_rows` rows of the units before passed over."""
    if source.dataset:
        blocks = text_blocks(_dataset_texts(source, skip_rows), unit_bytes)
    else:
        first, blocks = 0, _file_blocks(source, files, unit_bytes)
    counter = itertools.count(first)
    held: list[Block] = []
    size = 0
    for block in blocks:
        held.append(block)
        size += block.text_bytes
        if size >= unit_bytes:
            yield Unit(number, next(counter), tuple(held))
            held, size = [], 0
    if held:
        yield Unit(number, next(counter), tuple(held))


def documents(unit: Unit, source: SourceConfig) -> Iterator[str]:
    """Texts of a unit in order, without the empty ones."""
    for block in unit.blocks:
        texts = block.texts if block.texts is not None else reader_for(block.path, source).documents(block)
        yield from filter(None, texts)


def _file_blocks(source: SourceConfig, files: Sequence[Path], unit_bytes: int) -> Iterator[Block]:
    for file in files:
        yield from reader_for(str(file), source).blocks(file, unit_bytes)


def _files_at(path: str) -> list[Path]:
    named = Path(path)
    if named.is_dir():
        visible = (p for p in sorted(named.rglob("*")) if not _hidden(p.relative_to(named)))
        return [p for p in visible if file_format(p) and p.is_file()]
    matches = [named] if named.is_file() else map(Path, sorted(glob.glob(path, recursive=True)))
    files = [p for p in matches if p.is_file()]
    for file in files:
        if not file_format(file):
            raise UserError(f"data.sources.path: file '{file}' has a format that dgpt does not know",
                            rule=f"known are {' '.join(SUFFIXES)}, each also with .gz or .zst",
                            fix="rename or convert it, or narrow the path")  # fmt: skip
    return files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def stdlib_files() -> list[Path]:
    """Source and documentation of the standard library of this Python, without tests and encodings: about 10 MB."""
    files = []
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = sorted(name for name in subfolders if name not in STDLIB_SKIPPED)
        files += [Path(folder, name) for name in sorted(names) if name.endswith(STDLIB_SUFFIXES)]
    return files


def _dataset_texts(source: SourceConfig, skip: int) -> Iterator[str]:
    rows = _load_dataset(source).skip(skip)
    for number, row in enumerate(rows, start=skip):
        text = row.get(source.field)
        if text is not None and not isinstance(text, str):
            kind = type(text).__name__
            raise UserError(f"dataset '{source.dataset}', row {number}: field '{source.field}' holds {kind}",
                            rule="the field holds text",
                            fix=f"set `field` of the source to one of {list(row)}")  # fmt: skip
        yield text or ""


def _load_dataset(source: SourceConfig) -> Any:
    import datasets

    try:
        rows = datasets.load_dataset(source.dataset, source.dataset_config or None, split=source.split,
                                     streaming=source.streaming)  # fmt: skip
        if source.field not in (rows.column_names or [source.field]):
            raise ValueError(f"no field '{source.field}', only {rows.column_names}")
        return rows
    except Exception as error:  # `datasets` raises errors of many libraries
        raise UserError(f"dataset '{source.dataset}' cannot be loaded: {type(error).__name__}: {error}",
                        rule="the name, configuration, split and field exist, here or on the hub",
                        fix="correct them in data.sources; without a network, give files as `path`",
                        ) from None  # fmt: skip


def _candidates(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{n}" for n in itertools.count(2))
