"""The watch of a node: a thread of its agent that looks at the ranks' heartbeats, and ends them when the run hangs."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]

from dgpt.watch import hang as judge
from dgpt.watch.board import Board
from dgpt.watch.hang import HELD, Hang, Seen
from dgpt.watch.heartbeat import END, Beat, Identity, read
from dgpt.watch.stacks import stacks

LOOKS = 10  # in hang_seconds
LOOK_SECONDS = (0.5, 5.0)  # bounds of the time between two looks: a thousand GPUs are 125 files in it
SURVIVOR_SECONDS = 10.0  # for the other ranks of a node when one has died


@dataclass
class _Course:
    """A rank over several looks."""

    beat: Beat
    still: float = 0.0
    stuck: float = 0.0

    def see(self, beat: Beat, seconds: float) -> None:
        self.still = 0.0 if beat.signs != self.beat.signs else self.still + seconds
        self.stuck = 0.0 if beat.progress != self.beat.progress else self.stuck + seconds
        self.beat = beat


def _ignore(watch: "Watch") -> None:
    pass


class Watch:
    """Use as a context around torchrun. `hang` is what it found, and `own_stacks` those of its ranks then.

    Time is counted in looks: an agent that was frozen itself, with its node or its laptop, blames nobody for it.
    """

    def __init__(
        self, folder: Path, node: str, found: Callable[["Watch"], None] = _ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`found` is called when there is a hang, before the ranks are ended."""
        folder.mkdir(parents=True, exist_ok=True)
        self.hang: Hang | None = None
        self.since = 0.0  # Unix time from which the run stood still
        self.own_stacks: dict[int, str] = {}
        self._folder, self._node, self._found, self._clock = folder, node, found, clock
        self._looked = clock()
        self._interval = LOOK_SECONDS[0]
        self._attempt = ""
        self._courses: dict[int, _Course] = {}
        self._board: Board | None = None
        self._survived = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=2 * LOOK_SECONDS[0])  # a file server may hold it
        if self._board and not self._thread.is_alive():
            self._board.leave()

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            with suppress(OSError, psutil.Error):  # a file server that fails, a process that has just ended
                self.look()

    def look(self) -> None:
        """See how far the ranks are; when the run hangs, write their stacks and end those of this node."""
        now = self._clock()
        seconds, self._looked = min(now - self._looked, 2 * self._interval), now
        found = list(read(self._folder))
        living = [(identity, beat) for identity, beat in found if lives(identity.pid)]
        if not living:
            return
        identity = living[0][0]
        self._begin(identity, min(identity.rank for identity, _ in living))
        died = any(
            entry not in living and entry[0].attempt == self._attempt and entry[1].phase != END for entry in found
        )
        self._end_survivors(died, [identity.pid for identity, _ in living], seconds)
        ranks = sorted((self._see(*entry, seconds) for entry in living), key=lambda rank: rank.rank)
        if self.hang is None and identity.hang_seconds:
            self._compare(ranks, identity.world_size, seconds)

    def _begin(self, identity: Identity, first_rank: int) -> None:
        """A new start of the ranks."""
        if identity.attempt != self._attempt:
            self._attempt, self.hang, self._courses, self._survived = identity.attempt, None, {}, 0.0
            least, most = LOOK_SECONDS
            self._interval = min(most, max(least, identity.hang_seconds / LOOKS))
            self._board = Board(identity.run_dir, identity.attempt, first_rank)

    def _see(self, identity: Identity, beat: Beat, seconds: float) -> Seen:
        course = self._courses.setdefault(identity.rank, _Course(beat))
        course.see(beat, seconds)
        state = psutil.Process(identity.pid).status()
        return Seen(identity.rank, self._node, identity.pid, beat.step, beat.phase, beat.progress, beat.patience,
                    course.still, course.stuck, state)  # fmt: skip

    def _compare(self, ranks: Sequence[Seen], world_size: int, seconds: float) -> None:
        """Tell the agent of rank 0 and hear its word; without a file server that answers, each node knows its own."""
        assert self._board is not None
        alone = len(ranks) == world_size
        with suppress(OSError):
            self._board.write(ranks)
        if ranks[0].rank == 0:
            hang = judge.find([*ranks, *([] if alone else self._board.others(seconds))], world_size)
            with suppress(OSError):
                self._board.announce(hang)
        else:
            hang = self._board.announced()
        if hang:
            self._end(hang, ranks, alone=alone)

    def _end(self, hang: Hang, ranks: Sequence[Seen], *, alone: bool) -> None:
        """Write the stacks of the ranks here, then end them; rank 0's agent lets the other agents do so first."""
        since, processes = time.time() - hang.since, {rank.rank: rank.pid for rank in ranks if rank.phase != END}
        stopped = {rank.rank for rank in ranks if rank.state in HELD}
        self.own_stacks = stacks(self._folder, processes, stopped)
        lines = [f"[rank {rank}] {line}" for rank, text in self.own_stacks.items() for line in text.splitlines()]
        print("\n".join((hang.text, *lines)), file=sys.stderr, flush=True)
        self.since, self.hang = since, hang
        self._found(self)
        if ranks[0].rank == 0 and not alone:
            self._ended.wait(2 * self._interval)
        kill(processes.values())

    def _end_survivors(self, died: bool, others: Sequence[int], seconds: float) -> None:
        """When a rank has died, its peers on this node have a moment to see it by themselves."""
        self._survived = self._survived + seconds if died else 0.0
        if self._survived > SURVIVOR_SECONDS:
            kill(others)


def kill(processes: Iterable[int]) -> None:
    """Those that are still children of this process."""
    for pid in filter(lives, processes):
        os.kill(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    """Whether it is a child of this process, and no remains of one."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return bool(process.ppid() == os.getpid() and process.status() != psutil.STATUS_ZOMBIE)
    return False
