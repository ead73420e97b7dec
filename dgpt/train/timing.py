"""Where the wall time of a rank goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Phase = Literal["data", "forward", "backward", "step", "checkpoint", "evaluate"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Timings:
    """Seconds of wall time that the host spends in each phase, summed between two calls of `take`.

    `with timings("forward"): ...` costs about a microsecond and never waits for the device. On a CPU the seconds are
    the work itself. On CUDA the host runs ahead of the device, so "forward" and "backward" are the time to launch their
    kernels, and whichever phase first waits for the device (mostly "step") also holds what it waited for; the sum over
    the phases is right, and a trace (logging.profile_steps) shows the split on the device.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - start

    def take(self) -> dict[Phase, float]:
        """Seconds of every phase since the last call, and start again from zero."""
        taken, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return taken
