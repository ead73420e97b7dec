"""What the ranks of a node may leave when they are killed: processes of their own, and shared memory."""

import os
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

import psutil  # type: ignore[import-untyped]

SHARED = Path("/dev/shm")
NAMES = ("nccl-*", "torch_*", "psm_*", "sem.*", "cuda.shm.*")  # of NCCL, torch, Python's multiprocessing, CUDA


def end_children() -> None:
    """Kill all that descends from this process; an agent inherits what its workers started when they die."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=1)


def remove_shared_memory(since: float, folder: Path = SHARED) -> list[Path]:
    """Remove segments of this user that were made since then (Unix time) and that no process has open or mapped.

    Their names do not tell whose they are, so what another job of this user has in use stays. Returns those removed.
    """
    found = [path for path in folder.glob("*") if _may_be_ours(path, since)] if folder.is_dir() else []
    used = set(_used(folder)) if found else set()
    removed = [path for path in found if str(path) not in used]
    for path in removed:
        path.unlink(missing_ok=True)
    return removed


def _may_be_ours(path: Path, since: float) -> bool:
    with suppress(OSError):
        status = path.lstat()
        named = any(fnmatch(path.name, pattern) for pattern in NAMES)
        return named and status.st_uid == os.getuid() and status.st_ctime >= since
    return False


def _used(folder: Path) -> Iterator[str]:
    """Files of `folder` that processes of this user have open or mapped."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for line in (process / "maps").read_text(encoding="utf-8", errors="replace").splitlines():
                if str(folder) in line:
                    yield line[line.index(str(folder)) :]
        with suppress(OSError):
            for handle in (process / "fd").iterdir():
                with suppress(OSError):
                    yield os.readlink(handle)
