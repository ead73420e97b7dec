"""The training loop. It knows no parallelism: engine, data and everything that watches come as arguments."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dgpt.config import LoopConfig
from dgpt.errors import TrainingError
from dgpt.train.metrics import Monitor, StepMetrics
from dgpt.train.profile import Profiler
from dgpt.train.schedule import lr_at
from dgpt.train.stop import Stopper
from dgpt.train.timing import Timings


class Batch(Protocol):
    """One micro batch of this rank."""

    @property
    def inputs(self) -> tuple[Any, ...]: ...  # what the engine is called with
    @property
    def samples(self) -> tuple[int, ...]: ...  # sample numbers


class Trainable(Protocol):
    """The part of an Engine (dgpt.parallel.engine) that a step uses."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, lr: float) -> float: ...


class Progress(Protocol):
    """Where in the training data a run stands."""

    @property
    def samples(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def epoch(self) -> float: ...


class Verdict(NamedTuple):
    """What follows from an evaluation; the same on all ranks."""

    save: bool
    stop: bool


GO_ON = Verdict(save=False, stop=False)


@dataclass(frozen=True)
class Work:
    """What a run does besides stepping; each entry is called with the number of finished optimizer steps."""

    batches: Callable[[int], Iterable[Batch]]  # the micro batches of a step, on the device
    seed: Callable[[int, int], None]  # (step, micro step): seeds dropout
    mean: Callable[[Tensor], Tensor]  # over the data parallel ranks
    explain: Callable[[int, list[tuple[Tensor, tuple[int, ...]]]], TrainingError]  # step, losses and their samples
    position: Callable[[int], Progress]
    evaluate: Callable[[int], Verdict]
    sample: Callable[[int], None]
    save: Callable[[int, float], None]  # (steps, loss)
    poll: Callable[[], None]  # reports a save that has ended; cheap, after every step


def train(
    config: LoopConfig, engine: Trainable, work: Work, monitor: Monitor, stopper: Stopper, profiler: Profiler,
    timings: Timings, start_step: int,
) -> int:  # fmt: skip
    """Take optimizer steps from `start_step` to training.steps. Returns the steps done: fewer if asked to stop, or if
    an evaluation says that it is enough.

    Raises TrainingError, on all ranks at the same step, when a loss or gradient is not finite.
    """
    total = config.training.steps
    for step in range(start_step, total):
        lr = lr_at(step, config.optimizer, config.schedule, total)
        with profiler.step(step):
            losses, grad_norm = train_step(engine, work, timings, step, lr)
        if not math.isfinite(grad_norm):
            raise work.explain(step, losses)
        done = step + 1
        stop = stopper.agreed()
        last, verdict = stop or done == total, GO_ON
        monitor.advance(done)
        work.poll()
        if last or due(done, config.logging.every_steps):
            monitor.log_step(_metrics(work, timings, done, losses, lr, grad_norm))
        if due(done, config.training.eval_every_steps) or (done == total and config.training.eval_every_steps):
            with timings("evaluate"):
                verdict = work.evaluate(done)
        if due(done, config.logging.sample_every_steps):
            with timings("evaluate"):
                work.sample(done)
        if last or any(verdict) or stopper.save or due(done, config.checkpoint.every_steps):
            with timings("checkpoint"):
                work.save(done, _mean_loss(work, losses))
        if stop or verdict.stop:
            return done
    return total


Losses = list[tuple[Tensor, tuple[int, ...]]]  # of each micro step: mean loss (a device scalar), sample numbers


def train_step(engine: Trainable, work: Work, timings: Timings, step: int, lr: float) -> tuple[Losses, float]:
    """One optimizer step. Losses stay on the device; the gradient norm is the same on all ranks."""
    losses: Losses = []
    for micro_step, batch in enumerate(_timed(work.batches(step), timings)):
        work.seed(step, micro_step)
        with timings("forward"):
            loss = engine(*batch.inputs)
        with timings("backward"):
            engine.backward(loss * (1 + 0 * loss.detach()))  # an infinite loss makes the gradient NaN, on all ranks
        losses.append((loss.detach(), batch.samples))
    with timings("step"):
        grad_norm = engine.step(lr)
    return losses, grad_norm


def due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0: never) happens after `step` steps."""
    return every > 0 and step % every == 0


def _timed(batches: Iterable[Batch], timings: Timings) -> Iterator[Batch]:
    iterator = iter(batches)
    while True:
        with timings("data"):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


def _mean_loss(work: Work, losses: Losses) -> float:
    """Mean over the global batch of the step."""
    return float(work.mean(torch.stack([loss for loss, _ in losses]).mean()))


def _metrics(work: Work, timings: Timings, done: int, losses: Losses, lr: float, grad_norm: float) -> StepMetrics:
    at = work.position(done)
    return StepMetrics(
        step=done, loss=_mean_loss(work, losses), lr=lr, grad_norm=grad_norm, tokens=at.tokens, samples=at.samples,
        epoch=at.epoch, seconds=timings.take(),
    )  # fmt: skip
