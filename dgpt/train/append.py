"""A file that grows by whole pieces, on a disk that may be full."""

import os
from errno import ENOSPC
from pathlib import Path


class AppendFile:
    """Appends each piece as a whole: what a full disk cut off is taken back, so that no reader meets half a piece."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  # closed by `close`

    def add(self, piece: bytes) -> None:
        """Raises OSError if there is no room for all of it."""
        before = os.fstat(self._file.fileno()).st_size
        if self._file.write(piece) < len(piece):
            os.ftruncate(self._file.fileno(), before)
            raise OSError(ENOSPC, os.strerror(ENOSPC), self._file.name)

    def close(self) -> None:
        self._file.close()
