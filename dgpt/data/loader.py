"""Batches of a rank: its slice of the samples of each global step, read from the memory-mapped shards.

B micro batch, T seq_len, G global batch. Global step s trains on samples [s * G, (s + 1) * G): first those of micro
step 0, B for each data parallel rank in turn, then those of micro step 1, and so on. So which samples a step sees
depends on G alone, and where a run stands in the data is arithmetic.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgpt.config import BatchPlan
from dgpt.data.sampler import Integers, Sampler
from dgpt.data.shards import SourceTokens, TokenData
from dgpt.data.tokenizer import Tokens
from dgpt.errors import UserError

LOCATED_AT_ONCE = 4096  # samples: numpy is slow on few
VALIDATION_SEED = 0  # the order of the held-out samples is the same in every run


@dataclass(frozen=True)
class Batch:
    """Samples of one micro step."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64: the next token
    documents: Tensor | None  # (B, T) int64: number of the document within the sequence, from 0; None if not asked for
    samples: tuple[int, ...]  # sample numbers, for messages
    valid: int  # rows that count: all, or none in a batch that only keeps a rank in step (ValidationLoader)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the model is called with."""
        return self.tokens, self.targets, self.documents

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {name: value.pin_memory().to(device, non_blocking=True)
                 for name, value in vars(self).items() if isinstance(value, Tensor)}  # fmt: skip
        return replace(self, **moved)


class Position(NamedTuple):
    """Where in the data a step starts."""

    samples: int  # used before
    tokens: int  # in these samples
    epoch: float  # passes over the split
    source_epochs: dict[str, float]  # passes over each source


class Windows:
    """Reads samples by number: seq_len + 1 tokens each."""

    def __init__(self, data: TokenData, seq_len: int, seed: int, *, reset_at_document: bool) -> None:
        self.data, self.seq_len, self.reset_at_document = data, seq_len, reset_at_document
        self.sampler = Sampler([source.n_tokens for source in data.sources], seq_len, seed, data.weights)
        self._first, self._source, self._start = 0, np.empty(0, np.int64), np.empty(0, np.int64)

    def batch(self, first: int, count: int) -> Batch:
        """Samples `first` to `first + count` as tensors."""
        ids = self.read(first, count)
        tokens, targets = (torch.from_numpy(part.astype(np.int64, order="C")) for part in (ids[:, :-1], ids[:, 1:]))
        documents = document_numbers(tokens, self.data.eod_id) if self.reset_at_document else None
        return Batch(tokens, targets, documents, tuple(range(first, first + count)), count)

    def read(self, first: int, count: int) -> Tokens:
        """Token ids, (count, T + 1) in the data type of the shards."""
        out = np.empty((count, self.seq_len + 1), self.data.dtype)
        for source, rows, starts in self._by_source(first, count):
            out[rows] = source.gather(starts, self.seq_len + 1)
        return out

    def will_need(self, first: int, count: int) -> None:
        """Let the kernel fetch samples from the disk while others are trained on."""
        for source, _, starts in self._by_source(first, count):
            source.will_need(starts, self.seq_len + 1)

    def _by_source(self, first: int, count: int) -> Iterator[tuple[SourceTokens, slice | NDArray[np.bool_], Integers]]:
        """Sources of the samples, each with its rows and the first token of each."""
        source, starts = self._locate(first, count)
        if len(self.data.sources) == 1:
            yield self.data.sources[0], slice(None), starts
        else:
            for s in np.unique(source):
                yield self.data.sources[s], source == s, starts[source == s]

    def _locate(self, first: int, count: int) -> tuple[Integers, Integers]:
        """Source and first token of each sample; found for LOCATED_AT_ONCE samples in one go and kept."""
        offset = first - self._first
        if offset < 0 or offset + count > len(self._source):
            self._first, offset = first, 0
            self._source, self._start = self.sampler.locate(np.arange(first, first + max(count, LOCATED_AT_ONCE)))
        return self._source[offset : offset + count], self._start[offset : offset + count]


def document_numbers(tokens: Tensor, eod_id: int) -> Tensor:
    """Ends of documents before each token: (B, T) -> (B, T)."""
    ends = (tokens == eod_id).cumsum(dim=1)
    return torch.nn.functional.pad(ends[:, :-1], (1, 0))


class Loader:
    """Training batches of one data parallel rank. All ranks of a tensor parallel group give the same `dp_rank`."""

    def __init__(self, data: TokenData, *, seq_len: int, seed: int, plan: BatchPlan, dp_rank: int,
                 reset_at_document: bool) -> None:  # fmt: skip
        """Raises UserError where the data cannot fill one global batch, or a weighted source one sample."""
        _check_enough(data, seq_len, plan.global_batch_size)
        self.plan, self.dp_rank = plan, dp_rank
        self.windows = Windows(data, seq_len, seed, reset_at_document=reset_at_document)
        self.n_samples = int(self.windows.sampler.n_windows.sum())  # of one epoch

    def step(self, step: int) -> Iterator[Batch]:
        """The grad_accum_steps micro batches of this rank at global step `step`."""
        rows = self.plan.micro_batch_size
        for first in self._firsts(step + 1):
            self.windows.will_need(first, rows)
        for first in self._firsts(step):
            yield self.windows.batch(first, rows)

    def fingerprint(self, step: int) -> str:
        """Hash of the token ids of the whole global batch at `step`: the same on every rank and topology."""
        size = self.plan.global_batch_size
        tokens = self.windows.read(step * size, size)
        return hashlib.sha256(tokens.astype("<u4").tobytes()).hexdigest()[:16]

    def position(self, step: int) -> Position:
        """Samples used and epochs done before global step `step`."""
        samples = step * self.plan.global_batch_size
        names = (source.name for source in self.windows.data.sources)
        epochs = dict(zip(names, self.windows.sampler.epochs(samples), strict=True))
        return Position(samples, samples * self.windows.seq_len, samples / self.n_samples, epochs)

    def _firsts(self, step: int) -> list[int]:
        rows, start = self.plan.micro_batch_size, step * self.plan.global_batch_size
        return [start + (m * self.plan.dp_size + self.dp_rank) * rows for m in range(self.plan.grad_accum_steps)]


class ValidationLoader:
    """Held-out samples in an order that never changes, each at most once, over all data parallel ranks.

    Every rank gets the same number of batches. Where the samples do not fill them the last batches are smaller, and a
    rank without any gets one row to compute with, `valid` 0. So the mean over the split is exactly
    sum(batch mean * valid) / sum(valid) over batches and ranks, at any topology.
    """

    def __init__(self, data: TokenData, *, seq_len: int, micro_batch_size: int, dp_rank: int, dp_size: int,
                 max_samples: int, reset_at_document: bool) -> None:  # fmt: skip
        self.micro_batch_size, self.dp_rank, self.dp_size = micro_batch_size, dp_rank, dp_size
        by_count = replace(data, weights=(0.0,) * len(data.sources))
        self._windows = Windows(by_count, seq_len, VALIDATION_SEED, reset_at_document=reset_at_document)
        self.n_samples = min(self._windows.sampler.samples_before_repeat(), max_samples)  # 0: see `why_empty`
        self.why_empty = "" if self.n_samples else (
            f"the held-out split in '{data.path}' has {data.n_tokens} tokens, fewer than one sample of "
            f"{seq_len + 1}: raise data.val_fraction or give more documents")  # fmt: skip

    def __len__(self) -> int:
        return -(-self.n_samples // (self.micro_batch_size * self.dp_size))

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self)):
            first = (number * self.dp_size + self.dp_rank) * self.micro_batch_size
            count = min(self.micro_batch_size, self.n_samples - first)
            yield self._windows.batch(first, count) if count > 0 else replace(self._windows.batch(0, 1), valid=0)


def _check_enough(data: TokenData, seq_len: int, global_batch_size: int) -> None:
    n_windows = [max(0, source.n_tokens - 1) // seq_len for source in data.sources]
    if sum(n_windows) < global_batch_size:
        raise UserError(
            f"data.path = '{data.path}' holds {data.n_tokens} training tokens, which are {sum(n_windows)} samples of "
            f"model.seq_len = {seq_len}: too few for one batch of training.global_batch_size = {global_batch_size}",
            rule="an epoch has at least one global batch",
            fix="prepare more text, or lower training.global_batch_size or model.seq_len")  # fmt: skip
    for source, windows, weight in zip(data.sources, n_windows, data.weights, strict=True):
        if weight and not windows:
            raise UserError(
                f"data source '{source.name}' has weight {weight} but {source.n_tokens} training tokens, "
                f"less than one sample of model.seq_len = {seq_len}",
                rule="a source that is drawn from holds at least one sample",
                fix="give it more text, or take it out of data.sources and prepare the rest")  # fmt: skip
