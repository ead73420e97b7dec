"""A fine-tuned model against rows whose answers are known, and rows that are only asked."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from dgpt.config import FinetuneConfig
from dgpt.data.tokenizer import Tokenizer
from dgpt.errors import UserError
from dgpt.model.gpt import GPT
from dgpt.tasks.base import Answer, Scores, Task
from dgpt.tasks.loader import Sample, held_out_batches
from dgpt.tasks.registry import task_of
from dgpt.tasks.rows import Row


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned model, ready to answer."""

    model: GPT  # with the head of its task, in evaluation mode
    tokenizer: Tokenizer
    config: FinetuneConfig

    @cached_property
    def task(self) -> Task:
        return task_of(self.config, self.tokenizer)

    def answers(self, queries: Sequence[Any], batch_size: int = 32) -> Iterator[Answer]:
        """The answer to each of `task.query(row)`, in order; batch by batch."""
        with torch.no_grad():
            yield from self.task.answers(self.model, queries, batch_size)


def evaluate_task(model: Finetuned, rows: Iterable[Row | Mapping[str, Any]], *, batch_size: int = 32) -> Scores:
    """Mean loss, and what the answers to the rows are worth, by the names of `TaskConfig.metrics`.

    rows: as in a task file, with their right answers. Raises UserError for a bad row, or if there is none.
    """
    task = model.task
    named = [row if isinstance(row, Row) else Row(f"row {n}", dict(row)) for n, row in enumerate(rows, start=1)]
    kept = [(task.learnt(row), examples) for row in named if (examples := task.examples(row))]
    if not kept:
        raise UserError("no row to evaluate on", rule="an evaluation has one row or more", fix="give rows of the task")
    loss = _mean_loss(model, [[example] for _, examples in kept for example in examples], batch_size)
    answers = list(model.answers([task.query(row) for row, _ in kept], batch_size))
    results = {"loss": loss, **task.scores([task.gold(row) for row, _ in kept], answers)}
    if model.config.task.is_language_model:
        results["perplexity"] = float(torch.tensor(loss, dtype=torch.float64).exp())
    return results


def _mean_loss(model: Finetuned, samples: Sequence[Sample], batch_size: int) -> float:
    device = model.model.wte.weight.device
    total = mass = 0.0
    with torch.no_grad():
        for batch in held_out_batches(model.task, samples, batch_size, 0, 1):
            total += float(model.model(*batch.to(device).inputs[1:])) * batch.valid
            mass += batch.valid
    return total / mass
