"""Task: what the loader, the evaluation and `dgpt predict` need of a kind of task.

B batch, T tokens of the longest sample
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgpt.config import FinetuneConfig
from dgpt.data.tokenizer import Tokenizer
from dgpt.model.gpt import GPT
from dgpt.tasks.rows import Row

Ids = NDArray[np.int32]
Inputs = tuple[Tensor | None, ...]
Answer = dict[str, Any]  # a prediction, as a row of JSON
Scores = dict[str, float]


@dataclass(frozen=True)
class Example:
    """What is learnt from a row, or from a part of it, as token ids."""

    ids: Ids
    mass: float  # its weight in the mean loss: its tokens, the weight of its class, or 1

    @property
    def length(self) -> int:
        """Places that it takes in a sequence."""
        return len(self.ids)


class Task(ABC):
    """Examples from rows, inputs of the model from examples, answers to rows, and what the answers are worth."""

    def __init__(self, config: FinetuneConfig, tokenizer: Tokenizer) -> None:
        """`config` with the model filled in."""
        self.config, self.settings, self.fields = config, config.task, config.data.fields
        self.tokenizer = tokenizer
        self.max_tokens = config.data.max_tokens or config.model.seq_len
        self.skipped = self.cut = 0  # examples above max_tokens

    @abstractmethod
    def examples(self, row: Row) -> list[Example]:
        """What is learnt from a row; none if it is too long and to be skipped. Raises UserError for a bad row."""

    @abstractmethod
    def model(self, gpt: GPT) -> GPT:
        """`gpt` as this task uses it: itself, or with another head, whose weights are not yet initialised."""

    @abstractmethod
    def inputs(self, samples: Sequence[Sequence[Example]]) -> Inputs:
        """What the model is called with for a batch of samples, of one example each unless the task packs several."""

    @abstractmethod
    def query(self, row: Row) -> Any:
        """What is asked of the model; needs no answer in the row. Raises UserError for a bad row."""

    @abstractmethod
    def gold(self, row: Row) -> Any:
        """The right answer of a row."""

    def learnt(self, row: Row) -> Row:
        """The row up to its last right answer, to be asked in an evaluation. What may follow is asked by `query`."""
        return row

    @abstractmethod
    def answers(self, model: GPT, queries: Sequence[Any], batch_size: int) -> Iterator[Answer]:
        """The model's answer to each query, in order; batch by batch."""

    @abstractmethod
    def scores(self, golds: Sequence[Any], answers: Sequence[Answer]) -> Scores:
        """What the answers are worth, by the names of `TaskConfig.metrics`; without the loss."""

    def picture(self, golds: Sequence[Any], answers: Sequence[Answer]) -> NDArray[np.uint8] | None:
        """What can be seen of the answers, RGB (height, width, 3), if there is such a thing."""
        return None

    def too_long(self, row: Row, length: int) -> bool:
        """Whether to leave the example out; else it is to be cut. Raises UserError if that is not allowed."""
        if self.config.data.over_long == "refuse":
            raise row.refuse(f"the example has {length} tokens, the limit is {self.max_tokens}",
                             "an example fits into data.max_tokens, by default the model's seq_len",
                             'shorten it, or set data.over_long="truncate" or "skip"')  # fmt: skip
        skip = self.config.data.over_long == "skip"
        self.skipped += skip
        self.cut += not skip
        return skip

    def take_counts(self) -> tuple[int, int]:
        """How many examples were skipped and cut since the last call."""
        counts = self.skipped, self.cut
        self.skipped = self.cut = 0
        return counts

    def padded(self, rows: Sequence[Ids], fill: int | None = None) -> Tensor:
        """Rows of different lengths as (B, T) int64, filled on the right; by default with the end-of-document token."""
        out = np.full((len(rows), max(map(len, rows))), self.tokenizer.eod_id if fill is None else fill, np.int64)
        for b, ids in enumerate(rows):
            out[b, : len(ids)] = ids
        return torch.from_numpy(out)


def in_batches(queries: Sequence[Any], batch_size: int) -> Iterator[Sequence[Any]]:
    return (queries[at : at + batch_size] for at in range(0, len(queries), batch_size))
