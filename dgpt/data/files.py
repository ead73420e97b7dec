"""Files that are whole or absent, and their checksums."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpt.errors import UserError

READ_BYTES = 1 << 22


@dataclass(frozen=True)
class FileRecord:
    """Size and content of a file."""

    bytes: int
    sha256: str


def write_atomically(path: Path, chunks: Iterable[Any]) -> FileRecord:
    """Write buffers to a temporary name, flush them to the disk, and rename: nobody ever sees half of the file.

    Raises UserError where the folder cannot be written or is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest, size = hashlib.sha256(), 0
    with writing(path), open(temporary, "wb") as file:
        for chunk in chunks:
            size += file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
        temporary.rename(path)
        _fsync_folder(path.parent)
    return FileRecord(size, digest.hexdigest())


def write_json(path: Path, value: Any) -> FileRecord:
    """Write `value` as readable JSON, atomically."""
    return write_atomically(path, [json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"])


def sha256_of(path: Path) -> FileRecord:
    """Read a file once and hash it."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
            size += len(data)
    return FileRecord(size, digest.hexdigest())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into the user's words."""
    try:
        yield
    except OSError as error:
        raise UserError(f"data.path: '{path}' cannot be written: {error.strerror}",
                        rule="dgpt prepare writes into data.path",
                        fix="free space, take the rights or choose another data.path, then run it again: it continues",
                        ) from None  # fmt: skip


def _fsync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
