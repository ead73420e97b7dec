"""Readers, one small class for each file format: a file to blocks, and a block to documents."""

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from dgpt.config import SourceConfig
from dgpt.data.blocks import Block, line_blocks, open_stream, text_blocks
from dgpt.errors import UserError

LARGEST_TEXT_DOCUMENT = 4 << 20  # bytes; a text file above it is cut at line ends
LONGEST_TEXT_LINE = 1 << 20  # bytes
ROWS_AT_ONCE = 256  # rows of a Parquet file in memory
SLICES_OF_ROW_GROUP = 16  # at most: each reads over the rows before it
Errors = Literal["strict", "replace"]

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".tex", ".html", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp",
                 ".java", ".js", ".ts", ".go", ".rs", ".sh")  # fmt: skip
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*TEXT_SUFFIXES, *JSONL_SUFFIXES, ".parquet")


class Reader(Protocol):
    """One file format."""

    def blocks(self, path: Path, block_bytes: int) -> Iterator[Block]:
        """Cut a file into parts of about `block_bytes`, in order."""

    def documents(self, block: Block) -> Iterator[str]:
        """Texts of a block, in order."""


def file_format(path: str | Path) -> str:
    """The suffix that names the format, under a possible .gz or .zst; '' where dgpt has no reader for it."""
    stem, suffix = os.path.splitext(path)
    suffix = os.path.splitext(stem)[1] if suffix in (".gz", ".zst") else suffix
    return suffix if suffix in SUFFIXES else ""


def reader_for(path: str, source: SourceConfig) -> Reader:
    """The reader of a file that `file_format` knows."""
    suffix = file_format(path)
    if suffix in JSONL_SUFFIXES:
        return JsonlReader(source.field, source.encoding_errors)
    if suffix == ".parquet":
        return ParquetReader(source.field, source.encoding_errors)
    return TextReader(source.document_bytes, source.encoding_errors)


@dataclass(frozen=True)
class TextReader:
    """A file is a document; above `document_bytes` (0: LARGEST_TEXT_DOCUMENT) it is cut at line ends into several."""

    document_bytes: int = 0
    errors: Errors = "strict"

    def blocks(self, path: Path, block_bytes: int) -> Iterator[Block]:
        return line_blocks(path, self.document_bytes or LARGEST_TEXT_DOCUMENT, LONGEST_TEXT_LINE)

    def documents(self, block: Block) -> Iterator[str]:
        try:
            text = block.read().decode("utf-8", self.errors)
        except UnicodeDecodeError as error:
            raise _not_unicode(f"file '{block.path}', byte {block.start + error.start}", error.reason) from None
        yield text.removeprefix("\ufeff") if block.start == 0 else text


@dataclass(frozen=True)
class JsonlReader:
    """A line is a JSON object, and its `field` a document. Empty lines are passed over."""

    field: str = "text"
    errors: Errors = "strict"

    def blocks(self, path: Path, block_bytes: int) -> Iterator[Block]:
        return line_blocks(path, block_bytes)

    def documents(self, block: Block) -> Iterator[str]:
        for number, line in enumerate(block.read().split(b"\n")):
            if line.strip():
                yield self._document(line.removeprefix(b"\xef\xbb\xbf"), block, number)

    def _document(self, line: bytes, block: Block, number: int) -> str:
        try:
            text = json.loads(line.decode("utf-8", self.errors))[self.field]
            if not isinstance(text, str):
                raise TypeError(f"field '{self.field}' holds {type(text).__name__}, not text")
            return _without_surrogates(text, self.errors) if b"\\u" in line else text
        except UnicodeError as error:
            raise _not_unicode(_place(block, number), str(error)) from None
        except (ValueError, TypeError, KeyError) as error:
            why = f"no field '{self.field}'" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{_place(block, number)}: {why}: {line[:80].decode('utf-8', 'replace')}",
                            rule=f"each line is a JSON object with the text in field '{self.field}'",
                            fix="correct the line, or set `field` of the source") from None  # fmt: skip


@dataclass(frozen=True)
class ParquetReader:
    """A row is a document, in column `field`. Nulls are passed over."""

    field: str = "text"
    errors: Errors = "strict"

    def blocks(self, path: Path, block_bytes: int) -> Iterator[Block]:
        size = path.stat().st_size
        if path.suffix != ".parquet":  # a compressed file has no middle to read from
            yield from text_blocks(self._texts(str(path), None, 0, 1 << 62), block_bytes, size)
            return
        with self._open(str(path)) as file:
            groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
            all_rows = max(1, file.metadata.num_rows)
        for g, group in enumerate(groups):
            slices = min(SLICES_OF_ROW_GROUP, 1 + group.total_byte_size // block_bytes)
            edges = [group.num_rows * k // slices for k in range(slices + 1)]
            for start, stop in itertools.pairwise(edges):
                share = size * (stop - start) // all_rows
                yield Block(str(path), start, stop, g, text_bytes=group.total_byte_size // slices, disk_bytes=share)

    def documents(self, block: Block) -> Iterator[str]:
        return self._texts(block.path, [block.row_group], block.start, block.stop)

    def _texts(self, path: str, row_groups: list[int] | None, start: int, stop: int) -> Iterator[str]:
        import pyarrow

        with self._open(path) as file:
            row = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=row_groups, columns=[self.field]):
                if row >= stop:
                    return
                for data in batch.column(0).cast(pyarrow.large_binary()).to_pylist()[max(0, start - row) : stop - row]:
                    if data is not None:
                        yield self._decode(data, path)
                row += len(batch)

    def _decode(self, data: bytes, path: str) -> str:
        try:
            return data.decode("utf-8", self.errors)
        except UnicodeDecodeError as error:
            raise _not_unicode(f"file '{path}', column '{self.field}'", str(error)) from None

    @contextmanager
    def _open(self, path: str) -> Iterator[Any]:
        import pyarrow.parquet

        try:
            with _seekable(Path(path)) as stream, pyarrow.parquet.ParquetFile(stream) as file:
                kind = {field.name: str(field.type) for field in file.schema_arrow}.get(self.field, "no such column")
                if "string" not in kind:
                    raise UserError(f"file '{path}', column '{self.field}': {kind}; it has {file.schema_arrow.names}",
                                    rule="the text is in a column of strings",
                                    fix="set `field` of the source to that column")  # fmt: skip
                yield file
        except pyarrow.ArrowException as error:
            raise UserError(f"file '{path}' cannot be read: {error}", rule="a .parquet file is a whole Parquet file",
                            fix="copy it again, or take it out of the source's path") from None  # fmt: skip


@contextmanager
def _seekable(path: Path) -> Iterator[BinaryIO]:
    with open_stream(path) as (stream, raw):
        if stream is raw:
            yield stream
            return
        with tempfile.TemporaryFile() as plain:
            shutil.copyfileobj(stream, plain)
            yield plain


def _without_surrogates(text: str, errors: Errors) -> str:
    r"""JSON can write half of a character (`\ud800`), which no UTF-8 text can hold."""
    if errors == "strict":
        text.encode()
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _place(block: Block, number: int) -> str:
    """File and line of the `number`-th line of a block; counted now, as nobody needs it otherwise."""
    line, left = 1 + number, block.start
    with open_stream(Path(block.path)) as (stream, _):
        while left and (data := stream.read(min(left, 1 << 24))):
            line += data.count(b"\n")
            left -= len(data)
    return f"file '{block.path}', line {line}"


def _not_unicode(place: str, reason: str) -> UserError:
    return UserError(f"{place}: not valid Unicode text: {reason}", rule="text is UTF-8",
                     fix="convert the file, or set encoding_errors = 'replace' in its source")  # fmt: skip
