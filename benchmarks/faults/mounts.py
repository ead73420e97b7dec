"""File systems of a case's own: mounted in its mount namespace, which ends with its process."""

import ctypes
import os
from pathlib import Path

from benchmarks.faults.processes import Child

# From <sched.h> and <sys/mount.h>; os.unshare is there from Python 3.12 on, mount is not.
CLONE_NEWNS, MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1, 0x20, 0x1000, 0x4000, 0x40000


def why_not() -> str:
    """The reason why this process cannot mount; empty if it can."""
    error = Child(_separate).result().error
    return f"cannot mount here: {error}" if error else ""


def tmpfs(folder: Path, options: str) -> None:
    """A file system in memory at `folder`, e.g. options "size=64k". Raises OSError."""
    folder.mkdir(exist_ok=True)
    _separate()
    _mount("none", folder, "tmpfs", 0, options)


def read_only(folder: Path) -> None:
    """Let `folder` be seen read-only. Raises OSError."""
    _separate()
    _mount(str(folder), folder, "", MS_BIND, "")
    _mount("none", folder, "", MS_REMOUNT | MS_BIND | MS_RDONLY, "")


def _separate() -> None:
    """A mount namespace of our own, from which nothing spreads to others."""
    _check(_libc().unshare(CLONE_NEWNS))
    _mount("none", Path("/"), "", MS_REC | MS_PRIVATE, "")


def _mount(source: str, target: Path, kind: str, flags: int, options: str) -> None:
    strings = (value.encode() or None for value in (source, str(target), kind))
    _check(_libc().mount(*strings, ctypes.c_ulong(flags), options.encode() or None))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
