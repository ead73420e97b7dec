"""How a rank shows that it lives, and how long ranks wait for each other: long until the first step is done, as they
start, compile, allocate and connect; then not."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dgpt import runtime as processes
from dgpt.config import LoopConfig
from dgpt.outcome import LAST_SECONDS
from dgpt.runtime import Runtime
from dgpt.watch.heartbeat import STEPS_OF_PATIENCE, Heartbeat, Identity, Patience
from dgpt.watch.runtime import heartbeat_folder


class Pulse:
    """Of one rank in one start of a run, which `attempt` names."""

    def __init__(self, config: LoopConfig, runtime: Runtime, attempt: str) -> None:
        self._parallel = config.parallel
        hang, first = self._parallel.hang_seconds, self._parallel.first_step_timeout_seconds
        self._patience = Patience(hang, first)
        run_dir = str(Path(config.run_dir).absolute())
        identity = Identity(runtime.rank, os.getpid(), runtime.world_size, attempt, run_dir, hang)
        heartbeat = Heartbeat(heartbeat_folder(), identity, self._patience)
        self.enter, self.alive, self._end = heartbeat.enter, heartbeat.alive, heartbeat.end
        self._began: float | None = None
        self._timeout: float = first  # of a collective, seconds

    def begin(self) -> None:
        """The first step begins."""
        self._began = time.monotonic()

    def end(self) -> None:
        """The work is done: what is left to do may not take long."""
        self._end()
        processes.end_within(LAST_SECONDS)

    def stepped(self) -> None:
        """A step is done; cheap. After the first one, collectives in all groups have less time."""
        if self._began is None:
            return
        seconds, self._began = time.monotonic() - self._began, None
        self._patience.first_step(seconds)
        self._timeout = max(self._parallel.timeout_seconds, STEPS_OF_PATIENCE * seconds)
        processes.set_timeout(self._timeout)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Collectives in it have as long as in the first step: the ranks come from work that takes them different
        times. Whoever hangs in that is found by its signs of life."""
        processes.set_timeout(max(self._timeout, self._parallel.first_step_timeout_seconds))
        try:
            yield
        finally:
            processes.set_timeout(self._timeout)
