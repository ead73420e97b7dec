"""Folders and files behind a URL (s3://, gs://, hf://, ...), read by ranges and written whole, through fsspec.

`place` turns what a user gave into a Path or a RemotePath. RemotePath has those methods of Path that reading a
checkpoint takes, under the same names. An object store knows no links and no rename: what must not be taken for whole
before it is whole is given its last file last.
"""

import errno
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from dgpt.errors import UserError

READ_AHEAD_BYTES = 1 << 20
WRITE_BYTES = 32 << 20  # of one part of an upload: S3 takes at most 10,000 of them for a file


@dataclass(frozen=True)
class RemotePath:
    """A place behind a URL. What is missing raises FileNotFoundError; whatever else a store can fail by, UserError."""

    url: str

    def __str__(self) -> str:
        return re.sub(r"(?<=://)[^/@]*@", "***@", self.url)  # messages show no password

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self.url.rpartition("/")[0])

    def exists(self) -> bool:
        return self._info() is not None

    def is_dir(self) -> bool:
        return (self._info() or {}).get("type") == "directory"

    def size(self) -> int:
        """Bytes of a file. Raises OSError if this is none."""
        info = self._info()
        if info is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        if info.get("type") != "file" or info.get("size") is None:
            raise OSError(f"'{self.name}' is not a file of known size")
        return int(info["size"])

    def iterdir(self) -> Iterator["RemotePath"]:
        with self._store() as (store, path):
            names = {str(found).rstrip("/").rpartition("/")[2] for found in store.ls(path, detail=False)
                     if str(found).rstrip("/") != path.rstrip("/")}  # fmt: skip
        yield from (self / name for name in sorted(names))

    def open(self) -> BinaryIO:
        """The file for reading: one request for each large read, small ones are read ahead."""
        return cast(BinaryIO, io.BufferedReader(_RemoteFile(self, self.size()), READ_AHEAD_BYTES))

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return file.read()

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes [start, end). Raises OSError if the store answers with another number of bytes."""
        if start >= end:
            return b""
        with self._store() as (store, path):
            data = bytes(store.cat_file(path, start=start, end=end))
        if len(data) != end - start:
            raise OSError(f"asked for {end - start} bytes, got {len(data)}")
        return data

    def write(self, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
        """Write a whole file; returns its size and sha256. A failed write may leave a part of it."""
        size, digest = 0, hashlib.sha256()
        try:
            with self._store() as (store, path), store.open(path, "wb", block_size=WRITE_BYTES) as file:
                for chunk in chunks:
                    for begin in range(0, len(chunk), WRITE_BYTES):
                        piece = chunk[begin : begin + WRITE_BYTES]
                        digest.update(piece)
                        file.write(piece)
                    size += len(chunk)
        except FileNotFoundError:
            raise self._unreachable("there is no such bucket or folder") from None
        return size, digest.hexdigest()

    def delete(self) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError), self._store() as (store, path):
            store.rm_file(path)

    def _info(self) -> dict[str, Any] | None:
        with suppress(FileNotFoundError), self._store() as (store, path):
            return cast(dict[str, Any], store.info(path))
        return None

    @contextmanager
    def _store(self) -> Iterator[tuple[Any, str]]:
        """The fsspec file system (fsspec keeps it) and the path in it. Drivers raise what they like, this does not."""
        try:
            from fsspec.core import url_to_fs

            yield url_to_fs(self.url)
        except (FileNotFoundError, NotADirectoryError) as error:
            if _is_failure(error.__cause__):
                raise self._unreachable(f"{type(error.__cause__).__name__}: {error.__cause__}") from error
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from None
        except UserError:
            raise
        except ImportError as error:
            missing = getattr(error.__cause__ or error, "name", None) or "the package that the message names"
            raise UserError(f"'{self}' cannot be opened: {error}", rule="each kind of URL needs its fsspec driver",
                            fix=f"pip install {missing}") from None  # fmt: skip
        except Exception as error:
            raise self._unreachable(f"{type(error).__name__}: {error}") from error

    def _unreachable(self, reason: str) -> UserError:
        return UserError(f"'{self}' cannot be reached: {reason}",
                         rule="dgpt reads and writes URLs through fsspec, with the credentials that its driver finds",
                         fix="check the address, the network and the credentials, and try again")  # fmt: skip


Place = Path | RemotePath


def place(text: str | Path | RemotePath) -> Place:
    """A local path, or what a URL names; file:// is a local path, with all its checks."""
    if isinstance(text, RemotePath):
        return text
    scheme, separator, rest = str(text).partition("://")
    if not separator:
        return Path(text)
    return Path(rest) if scheme in ("file", "local") else RemotePath(f"{scheme}://{rest.rstrip('/')}")


def _is_failure(cause: BaseException | None) -> bool:
    """Whether a FileNotFoundError hides another trouble: the driver of HTTP raises it for all that goes wrong."""
    if isinstance(cause, OSError):
        return not isinstance(cause, (FileNotFoundError, NotADirectoryError))
    return getattr(cause, "status", 404) not in (404, 410)  # of aiohttp's ClientResponseError: not found, gone


class _RemoteFile(io.RawIOBase):
    def __init__(self, path: RemotePath, size: int) -> None:
        self._path, self._size, self._position = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._path.read_range(self._position, min(self._position + len(buffer), self._size))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
