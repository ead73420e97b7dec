"""The run folder of a case that happens to a disk, and how a save may fail there."""

import os
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults import mounts
from benchmarks.faults.kill import kill, two_ranks
from benchmarks.faults.processes import Child, Result
from benchmarks.faults.run import Ended, Shapes, save, start, start_and_save

STEPS = (2, 3, 4)  # that the ranks save; step 1 is there
TEMPORARY = "step_00000002.tmp-a1"
SHARDS = ("rank_00000.safetensors", "rank_00001.safetensors")


def prepare(folder: Path, stall_seconds: float) -> "Disk":
    """Save step 1."""
    disk = Disk(folder / "before-disk", Shapes(rows=480), stall_seconds)
    result = Child(partial(save, disk.before, disk.shapes, [1], "a0")).result()
    assert not result.error, result.error
    return disk


@dataclass(frozen=True)
class Disk:
    """What each case begins with: a run folder that holds step 1."""

    before: Path
    shapes: Shapes
    stall_seconds: float

    def make(self, folder: Path, *, small: bool = True) -> Path:
        """The run folder; small: on a disk of its own, of 1 MiB."""
        run_dir = folder / "run"
        if small:
            mounts.tmpfs(run_dir, "size=1m,nr_inodes=100")
        shutil.copytree(self.before, run_dir, dirs_exist_ok=True)
        return run_dir

    def save(self, run_dir: Path, steps: tuple[int, ...] = STEPS, **options: Any) -> list[Result]:
        """Both ranks save; raises AssertionError if one does not live to its end."""
        results = two_ranks(run_dir, shapes=self.shapes, keep_last=3, stall_seconds=self.stall_seconds, steps=steps,
                            **options)  # fmt: skip
        if any(result.error or (result.signal and options.get("act") is not kill) for result in results):
            raise AssertionError(f"a rank did not live to its end: {results}")
        return results


def one_failure(disk: Disk, run_dir: Path, **options: Any) -> Ended:
    """The save of step 2 fails on both ranks, that of step 3 does not."""
    ranks = [result.value for result in disk.save(run_dir, STEPS[:2], **options)]
    if any(rank["saved"] != [None, STEPS[1]] or len(rank["said"]) != 1 for rank in ranks):
        raise AssertionError(f"not one failure on each rank, and then a checkpoint: {ranks}")
    return replace(start_and_save(run_dir, disk.shapes), text=ranks[0]["said"][0])


def refused(disk: Disk, run_dir: Path) -> Ended:
    """Three saves fail, both ranks refuse to go on; a start still continues from step 1."""
    ranks = [result.value for result in disk.save(run_dir)]
    if not all(rank["refused"] and rank["saved"] == [None] * 3 for rank in ranks):
        raise AssertionError(f"not refused on both ranks: {ranks}")
    nothing_new(run_dir)
    if (ended := start(run_dir, disk.shapes)).step != 1:
        raise AssertionError(f"the start after the refusal: {ended}")
    return Ended("refuses", text=ranks[0]["refused"])


def nothing_new(run_dir: Path) -> None:
    """Raises AssertionError if there is a checkpoint but step 1."""
    names = [name for name in os.listdir(run_dir / "checkpoints") if "." not in name]
    if names != ["step_00000001"]:
        raise AssertionError(f"after a save that failed: {names}")
