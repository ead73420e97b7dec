"""Where the wall time of a rank goes."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Phase = Literal["data", "forward", "backward", "step", "checkpoint", "evaluate"]
PHASES: tuple[Phase, ...] = get_args(Phase)
KEPT_EVENTS = 2048
CPU = torch.device("cpu")


def _ignore(step: int, phase: Phase) -> None:
    pass


class Timings:
    """Seconds of wall time that the host spends in each phase, summed between two calls of `take`.

    `with timings("forward"): ...` costs about a microsecond and never waits for the device. On a CPU the seconds are
    the work itself. On CUDA the host runs ahead of the device, so "forward" and "backward" are the time to launch their
    kernels, and whichever phase first waits for the device (mostly "step") also holds what it waited for; the sum over
    the phases is right, and a trace (logging.profile_steps) shows the split on the device.

    enter: is called with the number of finished steps and the phase that begins.
    device: on CUDA the forward passes are also timed by events, for `own`.
    """

    def __init__(self, enter: Callable[[int, Phase], None] = _ignore, device: torch.device = CPU) -> None:
        self.done = 0  # optimizer steps finished
        self._enter, self._cuda = enter, device.type == "cuda"
        self._events: deque[torch.cuda.Event] = deque(maxlen=KEPT_EVENTS)  # begin and end of each forward pass
        self._forwards = 0
        self._seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        self._enter(self.done, phase)
        self._forwards += phase == "forward"
        start = time.perf_counter()
        self._mark(phase)
        try:
            yield
        finally:
            self._mark(phase)
            self._seconds[phase] += time.perf_counter() - start

    def own(self) -> float:
        """Seconds since the last `take` that this rank spent before it waited for others: in its data and its forward
        passes. Call it where the device has finished the step."""
        return self._seconds["data"] + (self._on_device() if self._events else self._seconds["forward"])

    def take(self) -> dict[Phase, float]:
        """Seconds of every phase since the last call, and start again from zero."""
        taken, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        self._events.clear()
        self._forwards = 0
        return taken

    def _on_device(self) -> float:
        """Seconds of the forward passes, from the last of them."""
        events = iter(self._events)
        milliseconds: list[float] = [begin.elapsed_time(end) for begin, end in zip(events, events, strict=True)]
        return self._forwards * sum(milliseconds) / len(milliseconds) / 1000

    def _mark(self, phase: Phase) -> None:
        if self._cuda and phase == "forward":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events.append(event)
