"""The numbers of a run: one flat row of named points per logging step, for console, metrics.jsonl and TensorBoard."""

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from dgpt.config import LoopConfig
from dgpt.train.board import BoardWriter
from dgpt.train.console import Console, duration, step_line
from dgpt.train.rows import RowFile
from dgpt.train.timing import Phase
from dgpt.watch import straggler

PAUSES: tuple[Phase, ...] = ("checkpoint", "evaluate")  # phases that are no part of a training step
RESULT_TAGS = {"loss": "loss/validation", "perplexity": "loss/validation_perplexity"}
GIB = 2**30


@dataclass(frozen=True)
class StepMetrics:
    """What the loop knows at a logging step; plain numbers, already taken from the device."""

    step: int  # optimizer steps finished
    loss: float  # mean over the tokens of the step, nats
    lr: float  # used by this step
    grad_norm: float  # global, before clipping
    tokens: int  # seen in training so far, over all ranks
    samples: int  # sequences seen so far: the position in the data
    epoch: float  # passes over the training data so far
    seconds: Mapping[Phase, float]  # Timings.take(): of every phase since the last logging step
    own_seconds: Sequence[float] = ()  # Timings.own() of each rank


class Monitor:
    """Shows and records the course of a run; made on every rank, it writes only on rank 0.

    Writes run_dir/metrics.jsonl and, with logging.tensorboard, run_dir/tensorboard. A run that resumes at `start_step`
    takes back what an earlier process recorded beyond it, so that no curve overlaps. Close it, or use it in a `with`.
    """

    def __init__(
        self,
        config: LoopConfig,
        *,
        run_dir: Path,
        is_main: bool,
        start_step: int,
        start_tokens: int,
        flops_per_token: float,
        world_size: int,
        device: torch.device,
        console: Console,
        peak_flops: float | None = None,
        nodes: Sequence[str] = (),
    ) -> None:
        """`flops_per_token` of the whole model, forward and backward; `peak_flops` of one device, None if unknown;
        `nodes`: the name of each rank's."""
        self._total_steps = config.training.steps
        self._world_size = world_size
        self._device = device
        self._console = console
        peak = config.logging.peak_tflops * 1e12 or peak_flops
        self._mfu_per_token = 100 * flops_per_token / (peak * world_size) if peak else None  # percent x seconds
        self._rows = RowFile(run_dir / "metrics.jsonl", start_step) if is_main else None
        self._board = BoardWriter(run_dir, start_step) if is_main and config.logging.tensorboard else None
        self._nodes = dict(enumerate(nodes))
        self._comparisons: deque[Mapping[str, float]] = deque(maxlen=straggler.WINDOWS)
        self._straggler = ""
        self._failing: set[RowFile | BoardWriter] = set()  # whose last write failed
        self._last_step, self._last_tokens = start_step, start_tokens
        self._last_time = time.perf_counter()
        self._pace = 0.0  # seconds of wall time per step with all pauses, smoothed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, step: int) -> None:
        """Move the progress bar; cheap enough for every step."""
        self._console.advance(step)

    def log_step(self, metrics: StepMetrics) -> None:
        """Record a logging step; its speed leaves out the checkpoints and evaluations since the last one."""
        now = time.perf_counter()
        steps, wall = metrics.step - self._last_step, now - self._last_time
        tokens = metrics.tokens - self._last_tokens
        self._last_step, self._last_tokens, self._last_time = metrics.step, metrics.tokens, now
        pauses = sum(metrics.seconds.get(phase, 0.0) for phase in PAUSES)
        comparison = straggler.points(metrics.own_seconds, wall - pauses)
        points = {**_state(metrics), **self._speed(steps, tokens, wall - pauses), **_times(metrics.seconds, steps),
                  **comparison, "system/peak_memory_gib": peak_memory_gib(self._device)}  # fmt: skip
        self._record(points, metrics.step)
        eta = self._eta(metrics.step, wall / steps)
        self._console.print(step_line(points, metrics.step, self._total_steps, eta))
        self._console.note(f"loss {metrics.loss:.3f}, ETA {duration(eta)}")
        self._name_straggler(comparison, metrics.step)

    def _name_straggler(self, comparison: Mapping[str, float], step: int) -> None:
        """Once, when a rank begins to be slow."""
        self._comparisons.append(comparison)
        found = straggler.find(self._comparisons)
        text = found.text(self._nodes) if found else ""
        if found and not self._straggler:
            self._console.print(f"step {step}: SLOW: {text}")
            self.log_text("straggler", text, step)
        self._straggler = text

    def log_eval(self, step: int, loss: float) -> None:
        """Record the mean loss (nats per token) on the held-out split after `step` steps."""
        self.log_results(step, {"loss": loss, "perplexity": perplexity(loss)})

    def log_results(self, step: int, results: Mapping[str, float]) -> None:
        """Record what was measured on the held-out split after `step` steps, by name: the loss, and what else a task
        knows."""
        self._record({RESULT_TAGS.get(name, f"validation/{name}"): value for name, value in results.items()}, step)
        shown = (f"{name} {value:,.2f}" if name == "perplexity" else f"{name} {value:.4f}"
                 for name, value in results.items())  # fmt: skip
        width = len(str(self._total_steps))
        self._console.print(f"step {step:>{width}}/{self._total_steps} | validation {' | '.join(shown)}")

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Show `text` as it is in a TensorBoard text panel, e.g. the config or a sample."""
        if self._board:
            self._attempt(self._board, partial(self._board.add_text, tag, text, step))

    def log_image(self, tag: str, image: NDArray[np.uint8], step: int) -> None:
        """Show an RGB picture (height, width, 3) in TensorBoard."""
        if self._board:
            self._attempt(self._board, partial(self._board.add_image, tag, image, step))

    def close(self) -> None:
        """The console stays open; who made it closes it."""
        for sink in (self._rows, self._board):
            if sink:
                sink.close()

    def _speed(self, steps: int, tokens: int, seconds: float) -> dict[str, float]:
        rate = tokens / seconds
        speed = {
            "speed/tokens_per_second": rate,
            "speed/tokens_per_second_per_device": rate / self._world_size,
            "speed/seconds_per_step": seconds / steps,
        }
        return speed if self._mfu_per_token is None else {**speed, "speed/mfu_percent": rate * self._mfu_per_token}

    def _eta(self, step: int, seconds_per_step: float) -> float:
        self._pace = 0.7 * self._pace + 0.3 * seconds_per_step if self._pace else seconds_per_step
        return max(0, self._total_steps - step) * self._pace

    def _record(self, points: Mapping[str, float], step: int) -> None:
        for sink in (self._rows, self._board):
            if sink:
                self._attempt(sink, partial(sink.add, points, step))

    def _attempt(self, sink: RowFile | BoardWriter, write: Callable[[], None]) -> None:
        """A disk that is full costs points and no run; that is said once, until a write succeeds again."""
        try:
            write()
        except OSError as error:
            if sink not in self._failing:
                self._console.print(f"POINTS NOT WRITTEN, and training goes on: {error}")
            self._failing.add(sink)
        else:
            self._failing.discard(sink)


def perplexity(loss: float) -> float:
    """exp(loss), infinite where a float cannot hold it."""
    return math.exp(loss) if loss < math.log(sys.float_info.max) else math.inf


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that this process has held: of the GPU by torch's allocator, else resident in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) counts bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def _state(m: StepMetrics) -> dict[str, float]:
    return {"loss/train": m.loss, "optimizer/lr": m.lr, "optimizer/grad_norm": m.grad_norm,
            "progress/tokens": m.tokens, "progress/samples": m.samples, "progress/epoch": m.epoch}  # fmt: skip


def _times(seconds: Mapping[Phase, float], steps: int) -> dict[str, float]:
    """Phases of the step as seconds per step; a pause as seconds since the last logging step."""
    return {f"time/{phase}_seconds": s if phase in PAUSES else s / steps for phase, s in seconds.items()}
