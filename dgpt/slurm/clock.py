"""When a running job has to be asked to save, by what its run has measured since it was submitted.

Slurm sends its signal so long before the time limit as --signal said at submission, and takes no other value from a job
that runs or is requeued. If saves have turned out to take longer, the batch script asks earlier.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from dgpt.slurm.lead import Pace, measured

LOOK_SECONDS = 30.0
MARGIN_SECONDS = 10.0  # to end in, and for clocks that differ


class Clock:
    """Of one job; `record` is Slurm's, from when its ranks started."""

    def __init__(self, run_dir: Path, record: Mapping[str, str]) -> None:
        self.run_dir, self.end = run_dir, float("inf")  # Unix time
        with suppress(ValueError):
            self.end = datetime.fromisoformat(record.get("EndTime", "")).timestamp()
        self.pace: Pace | None = None
        self._next_look = 0.0

    @property
    def lead(self) -> float:
        return self.pace.needed + MARGIN_SECONDS if self.pace else 0.0

    def time_to_save(self) -> bool:
        """Whether less time is left than a save needs. Looks into the run folder now and then, if it can."""
        now = time.time()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            with suppress(OSError):
                self.pace = measured(self.run_dir)
        return self.end - now < self.lead
