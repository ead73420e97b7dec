"""Blocks: the parts in which files are read. Where a file is cut depends on the file alone, not on who reads it."""

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from dgpt.errors import UserError

READ_BYTES = 1 << 16  # of a compressed file; what they hold is in memory


@dataclass(frozen=True)
class Block:
    """A part of a source: `start` to `stop` in bytes of a file, or rows of a Parquet row group; or texts at hand."""

    path: str = ""
    start: int = 0
    stop: int = 0
    row_group: int = 0
    data: bytes | None = None  # bytes start to stop, where the file cannot be read from the middle
    texts: tuple[str, ...] | None = None  # the documents themselves, where no file holds them
    text_bytes: int = 0  # about
    disk_bytes: int = 0  # for the progress bar

    def read(self) -> bytes:
        """Bytes start to stop."""
        if self.data is not None:
            return self.data
        with open_stream(Path(self.path)) as (stream, _):
            stream.seek(self.start)
            return stream.read(self.stop - self.start)


def document_key(data: bytes) -> int:
    """Hash of a document's UTF-8 bytes, evenly spread over [0, 2^64)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def is_held_out(data: bytes, val_fraction: float) -> bool:
    """Whether a document goes to the validation split: by its text alone, so that copies of it go the same way."""
    return document_key(data) < val_fraction * 2**64


def line_blocks(path: Path, block_bytes: int, longest_line: int = -1) -> Iterator[Block]:
    """Cut a file after the first line end past every `block_bytes`.

    A line above `longest_line` bytes is cut between two characters. A plain file is only sought through; the bytes of
    a compressed one come with the block, because nobody can start to read in its middle.
    """
    with open_stream(path) as (stream, raw):
        size = path.stat().st_size
        compressed = raw is not stream
        start = on_disk = 0
        while True:
            data = stream.read(block_bytes) if compressed else None
            if data is None:
                stream.seek(min(start + block_bytes, size))
            end = _rest_of_line(stream, longest_line)
            data = None if data is None else data + end
            stop = stream.tell() if data is None else start + len(data)
            if stop == start:
                return
            on_disk_now = raw.tell() if compressed else stop
            yield Block(str(path), start, stop, data=data, text_bytes=stop - start, disk_bytes=on_disk_now - on_disk)
            start, on_disk = stop, on_disk_now


def text_blocks(texts: Iterable[str], block_bytes: int, disk_bytes: int = 0) -> Iterator[Block]:
    """Blocks of documents that come one by one; `disk_bytes` of all of them is counted with the first."""
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= block_bytes:
            yield Block(texts=tuple(held), text_bytes=size, disk_bytes=disk_bytes)
            held, size, disk_bytes = [], 0, 0
    if held:
        yield Block(texts=tuple(held), text_bytes=size, disk_bytes=disk_bytes)


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A file's content, decompressed if its name ends in .gz or .zst, and the file on disk beneath."""
    import zstandard

    try:
        with open(path, "rb") as raw:
            if path.suffix == ".gz":
                yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)), raw
            elif path.suffix == ".zst":
                yield cast(BinaryIO, io.BufferedReader(ZstdStream(raw), 1 << 20)), raw
            else:
                yield raw, raw
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        raise UserError(f"file '{path}' cannot be read: {error}",
                        rule="sources are readable files; .gz and .zst hold whole gzip and zstd streams",
                        fix="copy or compress it again, or take it out of the source's path") from None  # fmt: skip


class ZstdStream(io.RawIOBase):
    """Content of zstd frames. `zstandard`'s own reader takes a file that was cut off for one that ends."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: Any = None  # that is being read
        self._compressed = self._plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain and (data := self._compressed or self._raw.read(READ_BYTES)):
            self._decompress(data)
        if not self._plain and self._frame is not None:
            raise EOFError("it ends in the middle of a zstd frame")
        part, self._plain = self._plain[: len(buffer)], self._plain[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def _decompress(self, data: bytes) -> None:
        import zstandard

        self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
        self._plain, self._compressed = self._frame.decompress(data), b""
        if self._frame.eof:
            self._compressed, self._frame = self._frame.unused_data, None


def _rest_of_line(stream: BinaryIO, longest: int) -> bytes:
    line = stream.readline(longest)
    if 0 < longest <= len(line) and not line.endswith(b"\n"):
        while (following := cast(io.BufferedReader, stream).peek(1)[:1]) and following[0] & 0xC0 == 0x80:
            line += stream.read(1)  # bytes 10xxxxxx belong to the character before them
    return line
