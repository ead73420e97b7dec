"""A rank's sign of life: 48 bytes of memory that it shares with the agent of its node through a mapped file.

To beat is to write to memory: no collective, no system call, no file server. It says where the rank is and how long it
may stay there without another sign; dgpt.watch.agent reads it. SIGUSR2 makes the process write its Python stacks.
"""

import faulthandler
import json
import mmap
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from struct import Struct

PHASES = ("start", "data", "forward", "backward", "step", "evaluate", "checkpoint", "end")
END = "end"
STEPS_OF_PATIENCE = 2  # a step that takes long, as the host sees it, may be all without a sign of life
_LAYOUT = Struct("<4q2d")


@dataclass(frozen=True)
class Identity:
    """What does not change of a rank in one start of a run."""

    rank: int
    pid: int
    world_size: int
    attempt: str  # names the start; the same on all ranks, and another at the next start
    run_dir: str
    hang_seconds: float  # 0: nobody watches


@dataclass(frozen=True)
class Beat:
    """Where a rank is."""

    signs: int  # of life so far
    progress: int  # phases so far: ranks of equal progress are at the same place of the run
    step: int  # optimizer steps finished
    phase: str
    time: float  # of the last sign, Unix time in seconds by the clock of the node
    patience: float  # seconds until the next sign; beyond them the rank hangs


class Patience:
    """How long a rank may give no sign of life.

    Until the first step is done, and in each phase for the first time (an evaluation compiles, a save allocates), it is
    `first_seconds`; then `hang_seconds`, or two steps where they take longer: with CUDA the host may see nothing but
    the end of a step.
    """

    def __init__(self, hang_seconds: float, first_seconds: float) -> None:
        self._hang_seconds, self._first_seconds = hang_seconds or float("inf"), first_seconds
        self._step_seconds: float | None = None
        self._phase, self._known = "", set[str]()

    def first_step(self, seconds: float) -> None:
        """The first step is done, and took so long."""
        self._step_seconds = seconds

    def of(self, phase: str) -> float:
        """Seconds, for the time that begins now."""
        if phase != self._phase:
            self._known.add(self._phase)
            self._phase = phase
        usual = max(self._hang_seconds, STEPS_OF_PATIENCE * (self._step_seconds or 0.0))
        known = self._step_seconds is not None and phase in self._known
        return usual if known else max(usual, self._first_seconds)


class Heartbeat:
    """Of one rank. Without a folder, where no agent watches, the same into memory of its own."""

    def __init__(self, folder: Path | None, identity: Identity, patience: Patience) -> None:
        self._patience = patience
        self._memory = _memory(folder, identity) if folder else mmap.mmap(-1, _LAYOUT.size)
        self._signs = self._progress = 0
        self.enter(0, "start")

    def enter(self, step: int, phase: str) -> None:
        """The rank begins a phase, or the next part of it, as its peers do: it makes progress."""
        self._progress += 1
        self._place = self._progress, step, PHASES.index(phase)
        self._seconds = self._patience.of(phase)
        self.alive()

    def alive(self) -> None:
        """A sign of life where ranks may do different things, as in waiting for a save."""
        self._signs += 1
        _LAYOUT.pack_into(self._memory, 0, self._signs, *self._place, time.time(), self._seconds)

    def end(self) -> None:
        """The work is done: whatever comes now, nobody waits for it."""
        self._seconds = float("inf")
        self._place = self._progress, self._place[1], PHASES.index(END)
        self.alive()


def _memory(folder: Path, identity: Identity) -> mmap.mmap:
    """The agent sees a file when it is whole."""
    stem = folder / f"rank_{identity.rank}"
    for old in (".json", ".beat", ".stack"):  # of the start before
        stem.with_suffix(old).unlink(missing_ok=True)
    stem.with_suffix(".beat").write_bytes(bytes(_LAYOUT.size))
    with stem.with_suffix(".beat").open("r+b") as file:
        memory = mmap.mmap(file.fileno(), _LAYOUT.size)
    with stem.with_suffix(".stack").open("w") as stacks:
        faulthandler.register(signal.SIGUSR2, os.dup(stacks.fileno()))
    temporary = stem.with_suffix(".partial")
    temporary.write_text(json.dumps(asdict(identity)), encoding="utf-8")
    temporary.replace(stem.with_suffix(".json"))
    return memory


def read(folder: Path) -> Iterator[tuple[Identity, Beat]]:
    """All ranks that beat in a folder."""
    for path in sorted(folder.glob("rank_*.json")):
        with suppress(OSError, ValueError):  # one that is started anew
            identity = Identity(**json.loads(path.read_text(encoding="utf-8")))
            signs, progress, step, phase, when, patience = _LAYOUT.unpack(path.with_suffix(".beat").read_bytes())
            if signs:
                yield identity, Beat(signs, progress, step, PHASES[phase], when, patience)


def stack_file(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.stack"
