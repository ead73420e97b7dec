"""Act at one point of a save: before its n-th operation on the file system, or after n bytes of a file.

The operations are not named beforehand: a first save, in which nothing happens, lists them. So the points follow the
code. Idea: Pillai et al., All File Systems Are Not Created Equal (ALICE), OSDI 2014.
"""

import builtins
import io
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_AUDITED = {"os.rename": "rename", "os.remove": "unlink", "os.rmdir": "rmdir", "os.mkdir": "mkdir"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Point:
    """Before an operation; with `call` "write": when the file has `written` bytes."""

    call: str  # mkdir, open (for writing), write, fsync, rename, unlink, rmdir
    path: str  # below the watched folder
    target: str = ""  # of a rename
    nth: int = 1  # how often this operation was met; of "write", which of its points
    written: int = 0  # bytes

    def __str__(self) -> str:
        path = "the folder checkpoints" if self.path == "." else self.path
        if self.call == "write":
            return f"after {self.written:,} bytes of {path}"
        return f"before {self.call} of {path}" + (f" to {Path(self.target).name}" if self.target else "")


class Watch:
    """Sees what this process does to the files below `root`. It cannot be taken off: for processes that end soon."""

    def __init__(self, root: Path, point: Point | None = None, act: Callable[[], object] = lambda: None) -> None:
        self.seen: list[Point] = []
        self.written: Counter[str] = Counter()
        self._root, self._point, self._act = f"{root}/", point, act
        self._count: Counter[Point] = Counter()
        self._fsync, self._open = os.fsync, builtins.open
        sys.addaudithook(self._audit)
        os.fsync = self._watch_fsync  # type: ignore[assignment]
        builtins.open = self._watch_open

    def below(self, path: Any, folder_fd: int = -1) -> str | None:
        """The path seen from the root; None if it lies elsewhere."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        base = os.getcwd() if folder_fd == -1 else os.readlink(f"/proc/self/fd/{folder_fd}")
        whole = os.path.join(base, os.fsdecode(path))
        return os.path.relpath(whole, self._root) if f"{whole}/".startswith(self._root) else None

    def room(self, path: str) -> int | None:
        """Bytes that may still be written to `path` before the point is reached; None if it is not there."""
        here = self._point and self._point.call == "write" and self._point.path == path
        return self._point.written - self.written[path] if here and self._point else None

    def act(self) -> None:
        self._point = None
        self._act()

    def _meet(self, call: str, path: str | None, target: str = "") -> None:
        if path is None:
            return
        point = Point(call, path, target)
        self._count[point] += 1
        point = replace(point, nth=self._count[point])
        self.seen.append(point)
        if point == self._point:
            self.act()

    def _audit(self, event: str, values: tuple[Any, ...]) -> None:
        if event == "open" and not isinstance(values[0], int) and values[2] & _WRITING:
            self._meet("open", self.below(values[0]))
        elif event == "os.rename":
            self._meet("rename", self.below(values[0]), self.below(values[1]) or "")
        elif event in _AUDITED:
            self._meet(_AUDITED[event], self.below(values[0], values[-1]))

    def _watch_fsync(self, file: int) -> None:
        path = self.below(file)
        if path and path in self.written and self.written[path] != os.fstat(file).st_size:
            raise AssertionError(f"{path} was written in a way that is not watched")
        self._meet("fsync", path)
        self._fsync(file)

    def _watch_open(self, file: Any, mode: str = "r", *options: Any, **more: Any) -> Any:
        path = None if isinstance(file, int) or not set(mode) & set("wxa+") else self.below(file)
        if path is None:
            return self._open(file, mode, *options, **more)
        self.written[path] = 0
        if "b" not in mode or options or more:
            return self._open(file, mode, *options, **more)  # its fsync will say that its bytes were not seen
        return io.BufferedWriter(_Raw(self, path, file, mode.replace("b", "")))


class _Raw(io.FileIO):
    """A file whose writes stop at the point."""

    def __init__(self, watch: Watch, path: str, file: Any, mode: str) -> None:
        super().__init__(file, mode)
        self._watch, self._path = watch, path

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        room = self._watch.room(self._path)
        head = view if room is None or room > len(view) else view[:room]
        count = super().write(head) or 0
        self._watch.written[self._path] += count
        if room == count:
            self._watch.act()
        return count
