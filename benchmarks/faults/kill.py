"""kill -9 of one rank at each point of a save."""

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.faults.cases import Case
from benchmarks.faults.points import Point, Watch
from benchmarks.faults.processes import Child, Result
from benchmarks.faults.run import RANKS, Ended, Shapes, checkpointer, meta, save, start_and_save, state
from dgpt.errors import StorageError

STEP = 2  # the step that is saved; 1 is there already
PARTS = (0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 7 / 8, 1)  # of a rank's file
SCENARIOS = {  # what is there before attempt "a1" saves step 2; keep_last
    "the next step": ([1], 3),
    "step 2 again, pruning step 1": ([1, STEP], 1),
}


def kill_cases(folder: Path, shapes: Shapes, scenario: str, stall_seconds: float, *, every: bool) -> list[Case]:
    """A case for each point of each rank, in an order of time. every: also where little can go wrong."""
    steps, keep_last = SCENARIOS[scenario]
    before = folder / f"before-{len(steps)}"
    result = Child(partial(save, before, shapes, steps, "a0")).result()
    assert not result.error, result.error
    ranks = partial(two_ranks, shapes=shapes, keep_last=keep_last, stall_seconds=stall_seconds)
    traces = [result.value for result in ranks(link(before, folder / f"trace-{len(steps)}"))]
    old, new = (max(steps), "a0"), (STEP, "a1")
    cases = []
    for rank, trace in enumerate(traces):
        assert trace["saved"] == [STEP], trace
        points = [Point(**point) for point in trace["points"]]
        commit = next(i for i, point in enumerate(points) if _follows_commit(rank, point))
        for i, point in enumerate(points):
            if every or _matters(point):
                run = partial(_run, before, rank, point, ranks, shapes)
                expected = new if i >= commit else old
                cases.append(Case(f"kill -9 while saving {scenario}", f"rank {rank} {point}", run, expected))
    return cases


def two_ranks(
    run_dir: Path, points: dict[int, Point] | None = None, act: Callable[[], object] = lambda: kill(), **options: Any
) -> list[Result]:
    """Both ranks of attempt a1 save side by side; a rank that has a point acts there."""
    meet = partial(get_context("fork").Barrier(len(RANKS)).wait, 60)
    children = [Child(partial(_rank, run_dir, rank, meet, (points or {}).get(rank), act, **options)) for rank in RANKS]
    return [child.result() for child in children]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def link(source: Path, target: Path) -> Path:
    """A copy without copying: a save never changes a file that is there."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


def _rank(run_dir: Path, rank: int, meet: Callable[[], object], point: Point | None, act: Callable[[], object], *,
          shapes: Shapes, keep_last: int, stall_seconds: float, steps: tuple[int, ...] = (STEP,),
          before: Callable[[int, int], object] = lambda rank, step: None) -> dict[str, Any]:  # fmt: skip
    """What one rank knows at its end. before: done by each rank before it saves a step, while the other one waits."""
    said: list[str] = []
    saved, refused = [], ""
    c = checkpointer(run_dir, rank, "a1", said.append, keep_last=keep_last, stall_seconds=stall_seconds)
    watch = Watch(run_dir / "checkpoints", point, act)
    for step in steps:
        fragments = state(shapes, rank, step, "a1")
        meet()  # both have ended the step before
        before(rank, step)
        meet()
        try:
            c.save(step, fragments, meta(step))
            c.wait()
        except StorageError as error:
            refused = str(error)
        saved.append(c.saved_step)
    points = [vars(point) for point in chain(*(_with_bytes(point, watch) for point in watch.seen))]
    return {"saved": saved, "said": said, "refused": refused, "points": points}


def _follows_commit(rank: int, point: Point) -> bool:
    """The rename that makes a checkpoint exist is followed by a sync on rank 0; rank 1 says what it has read back."""
    return point.call == "fsync" and point.path == "." if rank == 0 else "-proofs" in point.path


def _matters(point: Point) -> bool:
    if point.call == "write":
        return point.nth % 3 == 1
    deleting = point.call == "unlink" and ".tmp-a1" not in point.path
    return deleting or point.call in ("fsync", "rename", "rmdir")


def _with_bytes(point: Point, watch: Watch) -> list[Point]:
    """There are also points between the opening of a file and its fsync."""
    if point.call != "open" or not watch.written[point.path]:  # a file that is only touched has no bytes
        return [point]
    parts, size = PARTS if point.path.endswith(".safetensors") else (1 / 2,), watch.written[point.path]
    return [point, *(Point("write", point.path, nth=i, written=max(1, int(size * part)))
                     for i, part in enumerate(parts, 1))]  # fmt: skip


def _run(
    before: Path, rank: int, point: Point, ranks: Callable[..., list[Result]], shapes: Shapes, folder: Path
) -> Ended:
    run_dir = link(before, folder / "run")
    results = ranks(run_dir, {rank: point})
    victim, peer = results[rank], results[1 - rank]
    if victim.signal != signal.SIGKILL:
        raise AssertionError(f"the point was not reached: {victim}")
    if peer.error:
        raise AssertionError(f"the other rank failed: {peer.error}")
    ended = start_and_save(run_dir, shapes)
    if (peer.value["saved"] == [STEP]) != (ended.attempt == "a1"):
        raise AssertionError(f"the other rank believed {peer.value['saved']}, but the run continues from {ended}")
    return ended
