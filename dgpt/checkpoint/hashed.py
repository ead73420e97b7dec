"""Read ranges of a file, and hash all of it on the way: one pass over the disk or the network gives both."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from dgpt.storage import Place, RemotePath

if TYPE_CHECKING:
    from hashlib import _Hash


def piece_bytes(path: Place) -> int:
    """How much to read at once: what stays in the cache of a core until it is hashed; a store takes long to answer."""
    return 8 << 20 if isinstance(path, RemotePath) else 1 << 20


class HashedReader:
    """An open file. With `digest` each of its bytes is hashed once, in order, whichever ranges are read.

    Ranges that rise cost one pass: what lies between them is read for the hash alone. A byte that is read twice counts
    for the hash as it was read first. `advance` hears the bytes hashed.
    """

    def __init__(
        self, file: BinaryIO, piece: int, digest: "_Hash | None" = None, advance: Callable[[int], None] = lambda _: None
    ) -> None:
        self._file, self._piece, self._digest, self._advance = file, piece, digest, advance
        self._hashed = 0  # bytes
        self._gap = memoryview(b"")

    def fill(self, offset: int, place: memoryview) -> None:
        """Read the bytes from `offset` on. Raises OSError if the file ends before `place` is full."""
        self._hash_until(offset)
        self._file.seek(offset)
        for start in range(0, len(place), self._piece):
            piece = place[start : start + self._piece]
            if self._file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
                raise OSError("ended while it was read")
            self._hash(piece[max(0, self._hashed - offset - start) :])

    def hexdigest(self) -> str:
        """Of the whole file."""
        assert self._digest is not None
        self._hash_until(math.inf)
        return self._digest.hexdigest()

    def _hash_until(self, end: float) -> None:
        if self._digest is None or self._hashed >= end:
            return
        self._gap = self._gap or memoryview(bytearray(self._piece))
        self._file.seek(self._hashed)
        while count := self._file.readinto(self._gap[: int(min(self._piece, end - self._hashed))]):  # type: ignore[attr-defined]
            self._hash(self._gap[:count])

    def _hash(self, piece: memoryview) -> None:
        if self._digest is not None:
            self._digest.update(piece)
            self._hashed += len(piece)
            self._advance(len(piece))
