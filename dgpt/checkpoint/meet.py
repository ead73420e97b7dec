"""Ranks that meet in a folder, without collectives: each leaves a report there, and rank 0 decides.

The others wait for the folder to disappear. A rank that dies leaves the rest waiting: rank 0 gives up when nothing has
changed for `stall_seconds`, the others after twice that.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from dgpt.checkpoint import files
from dgpt.checkpoint.job import Job


def report_path(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank:05d}.json"


def report(folder: Path, rank: int, content: str) -> None:
    """Raises nothing: without a report rank 0 gives up by time, and this rank has to wait for that with the others."""
    with suppress(Exception):
        files.write_whole(report_path(folder, rank), content.encode())


def collect(job: Job, folder: Path, patience: float) -> tuple[list[bytes], str]:
    """On rank 0: the reports of the other ranks, in order, and which of them are overdue, in words; "" if none is.

    Meanwhile their files in `folder` grow, or are touched. Raises OSError if somebody removes it.
    """
    paths = missing = [report_path(folder, rank) for rank in range(1, job.mesh.world_size)]
    if not paths:
        return [], ""
    for _ in _patience(lambda: signs(folder), patience):
        try:
            names = set(os.listdir(folder))
        except FileNotFoundError:
            raise OSError(f"{folder.name} was removed while ranks reported to it") from None
        missing = [path for path in paths if path.name not in names]
        if not missing:
            return [path.read_bytes() for path in paths], ""
        with suppress(OSError):
            os.utime(folder)  # a sign of life for the others
    late = ", ".join(path.stem.removeprefix("rank_").lstrip("0") for path in missing)
    there = [path.read_bytes() for path in paths if path not in missing]
    return there, f"no report from rank {late}, and {folder.name} has not changed for {patience:g} s"


def await_decision(job: Job, folder: Path) -> bool:
    """On the other ranks: whether rank 0 has removed the folder. It gives up first, hence twice its patience."""
    looks = _patience(lambda: _signs_of_rank_0(folder), 2 * job.stall_seconds)
    return any(not folder.exists() for _ in looks)


def _patience(look: Callable[[], object], stall_seconds: float) -> Iterator[None]:
    """Yields at growing intervals (10 ms to 1 s), until what `look` sees has been the same for `stall_seconds`.

    It looks ten times in that span: with a thousand ranks a look at their files is expensive.
    """
    delay, seen, changed, looked = 0.01, look(), time.monotonic(), time.monotonic()
    while True:
        yield
        now = time.monotonic()
        if now - looked > stall_seconds / 10:
            looked, before, seen = now, seen, look()
            if seen != before:
                changed = now
            elif now - changed > stall_seconds:
                return
        time.sleep(delay)
        delay = min(delay * 1.5, 1.0)


def _signs_of_rank_0(folder: Path) -> list[tuple[int, int]]:
    """It writes, or touches, its own file there, and then touches the folder while it waits for reports."""
    with suppress(OSError):
        states = [path.stat() for path in (folder, folder / "rank_00000.safetensors") if path.exists()]
        return [(state.st_mtime_ns, state.st_size) for state in states]
    return []


def signs(folder: Path) -> tuple[int, int]:
    """Of ranks that write or read: bytes, and a number that changes when one is touched (by clocks that may differ)."""
    with suppress(OSError), os.scandir(folder) as entries:
        states = [entry.stat(follow_symlinks=False) for entry in entries]
        return sum(state.st_size for state in states), sum(state.st_mtime_ns for state in states)
    return 0, 0
