"""Batches of a task: which examples a step sees is a pure function of (data, seed, sample number), as in pretraining.

A sample is one example, or a pack of several. Global step s trains on samples [s * G, (s + 1) * G) of an endless stream
of passes over all samples, each pass in another order. The loss of a step is the mean over all that is learnt in it
(tokens of answers, examples by their weight), whatever micro batch or rank it is in: each batch carries its share. So
within a step samples may be sorted by length, which saves padding, and changes nothing.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dgpt.config import BatchPlan
from dgpt.data.loader import Position
from dgpt.data.sampler import Integers, shuffle
from dgpt.errors import UserError
from dgpt.tasks.base import Example, Inputs, Task

Sample = Sequence[Example]


@dataclass(frozen=True)
class TaskBatch:
    """Samples of one micro step."""

    inputs: Inputs  # the batch's weight in the loss of the step, then what the model is called with
    samples: tuple[int, ...]  # sample numbers, for messages
    valid: float  # mass of its examples; 0 in a batch that only keeps a rank in step

    def to(self, device: torch.device) -> "TaskBatch":
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        return replace(self, inputs=tuple(x if x is None else x.to(device) for x in self.inputs))


class TaskLoader:
    """Training batches of one data parallel rank."""

    def __init__(self, task: Task, samples: Sequence[Sample], *, seed: int, plan: BatchPlan, dp_rank: int) -> None:
        """Raises UserError where there are fewer samples than one global batch has."""
        if len(samples) < plan.global_batch_size:
            raise UserError(
                f"{len(samples)} training samples are fewer than training.global_batch_size = {plan.global_batch_size}",
                rule="a pass over the examples has at least one global batch (with data.packing, of full sequences)",
                fix="lower training.global_batch_size, or give more examples")  # fmt: skip
        self.task, self.samples, self.seed, self.plan, self.dp_rank = task, samples, seed, plan, dp_rank
        self.mass = np.array([sum(example.mass for example in sample) for sample in samples])
        self.length = np.array([sum(example.length for example in sample) for sample in samples])

    def step(self, step: int) -> Iterator[TaskBatch]:
        """The grad_accum_steps micro batches of this rank at global step `step`."""
        numbers, chosen = self._of(step)
        order = np.argsort(self.length[chosen], kind="stable")
        numbers, chosen, rows = numbers[order], chosen[order], self.plan.micro_batch_size
        mean_mass = self.mass[chosen].sum() / (self.plan.grad_accum_steps * self.plan.dp_size)  # of a micro batch
        for micro_step in range(self.plan.grad_accum_steps):
            first = (micro_step * self.plan.dp_size + self.dp_rank) * rows
            part, which = chosen[first : first + rows], numbers[first : first + rows]
            mass = float(self.mass[part].sum())
            yield TaskBatch(_inputs(self.task, [self.samples[i] for i in part], mass / mean_mass),
                            tuple(which.tolist()), mass)  # fmt: skip

    def fingerprint(self, step: int) -> str:
        """Hash of the token ids of the whole global batch at `step`: the same on every rank and topology."""
        digest = hashlib.sha256()
        for i in self._of(step)[1]:
            for example in self.samples[i]:
                digest.update(example.ids.astype("<u4").tobytes())
        return digest.hexdigest()[:16]

    def position(self, step: int) -> Position:
        """Samples used, about how many tokens they had, and passes done before global step `step`."""
        samples = step * self.plan.global_batch_size
        return Position(samples, round(samples * float(self.length.mean())), samples / len(self.samples), {})

    def _of(self, step: int) -> tuple[Integers, Integers]:
        """Sample numbers of a step, and which of the samples each is."""
        size = self.plan.global_batch_size
        numbers = np.arange(step * size, (step + 1) * size)
        return numbers, shuffle(numbers, len(self.samples), self.seed)


def held_out_batches(task: Task, samples: Sequence[Sample], rows: int, dp_rank: int, dp_size: int,
                     ) -> Iterator[TaskBatch]:  # fmt: skip
    """Batches of this rank, in order; every rank gets as many. Their mean weighed by `valid` is that of all samples."""
    for first in range(dp_rank * rows, dp_rank * rows + -(-len(samples) // (rows * dp_size)) * rows * dp_size,
                       rows * dp_size):  # fmt: skip
        part = samples[first : first + rows]
        mass = sum(example.mass for sample in part for example in sample)
        yield TaskBatch(_inputs(task, part or samples[:1], 1.0), tuple(range(first, first + len(part))), mass)


def _inputs(task: Task, samples: Sequence[Sample], weight: float) -> Inputs:
    return torch.tensor(weight, dtype=torch.float32), *task.inputs(samples)
