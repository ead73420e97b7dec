"""Disks that are full or fill up while two ranks save, and folders that cannot be written to."""

import os
import resource
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from benchmarks.faults import mounts
from benchmarks.faults.cases import Case
from benchmarks.faults.disk import SHARDS, STEPS, TEMPORARY, Disk, nothing_new, one_failure, refused
from benchmarks.faults.kill import kill
from benchmarks.faults.points import Point
from benchmarks.faults.run import Ended, check_whole, start

FILE_LIMIT = 20_000  # bytes, less than a shard has
FULL = "No space left on device|bytes are needed"
FILLED_AT = {  # by another program, at a point of rank 0 or 1 while it saves step 2
    "after 1 byte of rank 0's shard": (0, Point("write", f"{TEMPORARY}/{SHARDS[0]}", written=1), FULL),
    "in the middle of rank 1's shard": (1, Point("write", f"{TEMPORARY}/{SHARDS[1]}", written=FILE_LIMIT), FULL),
    "before rank 1's report": (1, Point("open", f"{TEMPORARY}/rank_00001.json.partial"), f"{FULL}|no report"),
    "before the manifest": (0, Point("open", f"{TEMPORARY}/manifest.json.partial"), FULL),
    "before the manifest's hash": (0, Point("open", f"{TEMPORARY}/manifest.sha256.partial"), FULL),
}


def space_cases(disk: Disk) -> list[Case]:
    """Full disks, limits of a file's size, and folders that cannot be written to."""
    later, why_not = (STEPS[1], "a1"), mounts.why_not()
    case = partial(Case, "full disk", why_not=why_not)
    for_good = rf"not saved, failure 3 in a row: .*({FULL})"
    return [
        *(case(f"full {when}", partial(_filled, disk, fill_bytes, {rank: point}), later, reason=reason)
          for when, (rank, point, reason) in FILLED_AT.items()),
        case("full before the save", partial(_filled, disk, fill_bytes, {}), later, reason=FULL),
        case("no inodes before the save", partial(_filled, disk, fill_inodes, {}), later, reason=FULL),
        case("full for three saves", partial(_full_for_good, disk), None, "checkpoints", for_good),
        case("full at the next start, after kill -9", partial(_full_at_start, disk), (1, "a0")),
        Case("full disk", "a limit of 20,000 bytes for the files of rank 1", partial(_limited, disk), later,
             reason="File too large"),
        *_read_only_cases(disk, why_not if os.geteuid() == 0 else ""),
    ]  # fmt: skip


def fill_bytes(run_dir: Path) -> None:
    """Take all space."""
    (run_dir / "ballast").mkdir()
    with suppress(OSError), open(run_dir / "ballast" / "file", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def fill_inodes(run_dir: Path) -> None:
    """Make files until no more can be made."""
    (run_dir / "ballast").mkdir()
    with suppress(OSError):
        for number in range(1000):
            (run_dir / "ballast" / str(number)).touch()


def _filled(disk: Disk, fill: Callable[[Path], None], points: dict[int, Point], folder: Path) -> Ended:
    """Step 2 fails on both ranks, space is made, step 3 succeeds."""
    run_dir = disk.make(folder)

    def before(rank: int, step: int) -> None:
        if rank == 0 and step == STEPS[0] and not points:
            fill(run_dir)
        if rank == 0 and step == STEPS[1]:
            nothing_new(run_dir)
            shutil.rmtree(run_dir / "ballast")

    return one_failure(disk, run_dir, points=points, act=partial(fill, run_dir), before=before)


def _limited(disk: Disk, folder: Path) -> Ended:
    """As `_filled`, by a limit of the process, which needs no rights."""
    run_dir = disk.make(folder, small=False)

    def before(rank: int, step: int) -> None:
        if rank == 0 and step == STEPS[1]:
            nothing_new(run_dir)
        limit = FILE_LIMIT if (rank, step) == (1, STEPS[0]) else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    return one_failure(disk, run_dir, before=before)


def _full_for_good(disk: Disk, folder: Path) -> Ended:
    run_dir = disk.make(folder)
    fill_bytes(run_dir)
    return refused(disk, run_dir)


def _full_at_start(disk: Disk, folder: Path) -> Ended:
    run_dir = disk.make(folder)
    _killed(disk, run_dir)
    fill_bytes(run_dir)
    ended = start(run_dir, disk.shapes)
    check_whole(run_dir)
    return ended


def _killed(disk: Disk, run_dir: Path) -> None:
    rank, point, _ = FILLED_AT["before the manifest"]
    disk.save(run_dir, STEPS[:1], points={rank: point}, act=kill)
    if not (run_dir / "checkpoints" / TEMPORARY).exists():
        raise AssertionError("nothing was left over")


def _read_only_cases(disk: Disk, why_not: str) -> list[Case]:
    case = partial(Case, "read-only folder", why_not=why_not)
    read_only = "Read-only file system|Permission denied"
    return [
        case("for three saves", partial(_read_only_saves, disk), None, "checkpoints",
             f"not saved, failure 3 in a row: .*({read_only})"),
        case("at a start", partial(_read_only_start, disk, killed=False), (1, "a0")),
        case("at a start, after kill -9", partial(_read_only_start, disk, killed=True), None, "/run",
             f"({read_only}).*{TEMPORARY}"),
    ]  # fmt: skip


def _read_only_saves(disk: Disk, folder: Path) -> Ended:
    run_dir = disk.make(folder, small=False)
    _read_only(run_dir)
    return refused(disk, run_dir)


def _read_only_start(disk: Disk, folder: Path, *, killed: bool) -> Ended:
    run_dir = disk.make(folder, small=False)
    if killed:
        _killed(disk, run_dir)
    _read_only(run_dir)
    return start(run_dir, disk.shapes)


def _read_only(run_dir: Path) -> None:
    """By a mount, or, for whoever may not mount, by permissions (which do not bind root)."""
    if mounts.why_not():
        for path in (run_dir, *run_dir.rglob("*")):
            path.chmod(0o555)
    else:
        mounts.read_only(run_dir)
