"""Stopping or saving on all ranks at the same step: on a signal, or when the file run_dir/stop or save appears."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Self

import torch
import torch.distributed as dist

from dgpt.errors import TrainingError

TAKEN_OVER = """another start of this run has taken over the run folder: this one was silent, or its job was requeued
  rule: one job at a time writes to a run folder
  fix:  nothing is lost: the other start went on from the newest checkpoint"""
SAVE = 1  # an index in REASONS, and the only one that is no stop
REASONS = (
    "",
    "the save file",
    "the stop file",
    "SIGINT",
    "SIGUSR1",
    "SIGTERM",
    TAKEN_OVER,
)  # ranks agree on the largest index that one of them has
FILE_CHECK_SECONDS = 1.0  # a look at a shared file system after every step would be too many


class Stopper:
    """Whether the run shall save and end; `with Stopper(...) as stopper:` catches the signals.

    SIGTERM, SIGUSR1 and the first SIGINT only set a flag, so any number of them during the save does no harm; a second
    SIGINT (Ctrl-C twice) interrupts at once. Rank 0 also looks for run_dir/stop, and removes it when it is obeyed; for
    run_dir/save, which asks for one checkpoint, and removes it when it is seen; and asks `taken_over`, whether this job
    has lost its run folder.
    Once a stop was asked for, the signals stay caught until the process ends.
    """

    def __init__(
        self, run_dir: Path, *, is_main: bool, world_size: int, device: torch.device,
        taken_over: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._file = run_dir / "stop" if is_main else None
        self._save_file = run_dir / "save"
        self._taken_over = taken_over
        self._next_look = 0.0
        self._world_size = world_size
        self._device = device
        self._asked = 0  # what this rank was asked to stop for, an index in REASONS
        self._save_asked = False  # apart from the above, which a signal may raise at any moment
        self._interrupts = 0
        self._agreed = 0
        self._posted: tuple[torch.Tensor, dist.Work | None] | None = None
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._collect()  # no rank leaves while another still needs its answer
        saved = kind is None and self._agreed > SAVE
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if saved else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self._asked = max(self._asked, REASONS.index(signal.Signals(number).name))

    @property
    def reason(self) -> str:
        """What the ranks agreed to stop for; empty while they have not."""
        return REASONS[self._agreed] if self._agreed > SAVE else ""

    @property
    def save(self) -> bool:
        """Whether the ranks agreed at this step to save and go on."""
        return self._agreed == SAVE

    def agreed(self) -> bool:
        """Whether all ranks stop here; every rank calls it once, at the end of every step.

        The ranks take the maximum of their flags by an all-reduce that is posted at one step and read at the next, so
        that no host and no device waits for it: with several ranks a stop comes one step after the flag.
        Raises TrainingError on all ranks when the run folder was taken over: then nothing is to be saved.
        """
        self._look()
        asked = max(self._asked, SAVE * self._save_asked)
        self._save_asked = False
        self._agreed = asked if self._world_size == 1 else self._exchange(asked)
        stop = self._agreed > SAVE
        if stop and self._file:
            self._file.unlink(missing_ok=True)
        if self.reason == TAKEN_OVER:
            raise TrainingError(TAKEN_OVER)
        return stop

    def _exchange(self, asked: int) -> int:
        previous = self._collect()
        flag = torch.tensor(asked, dtype=torch.int32, device=self._device)
        self._posted = flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, async_op=True)
        return previous

    def _collect(self) -> int:
        """The maximum that was posted last, waiting for the ranks that have not posted theirs."""
        if self._posted is None:
            return 0
        flag, work = self._posted
        self._posted = None
        if work is not None:
            work.wait()
        return int(flag.item())

    def _look(self) -> None:
        if self._taken_over():
            self._asked = REASONS.index(TAKEN_OVER)
        now = time.monotonic()
        if self._file and not self._asked and now >= self._next_look:
            self._next_look = now + FILE_CHECK_SECONDS
            if self._file.exists():
                self._asked = max(self._asked, REASONS.index("the stop file"))
            if self._save_file.exists():
                self._save_file.unlink(missing_ok=True)
                self._save_asked = True
