"""Every token of a text scored once, in windows that a model can read.

Before the tokens t of a row stands an end-of-document token, so that the first has something to follow. The first
window scores up to `seq_len` tokens, each after all that come before it. Each later one ends `stride` tokens after the
window before it, scores those, and is as long as the model reads: token i of them (from 0) sees seq_len - stride + i
tokens before it, itself not counted. So a smaller stride costs more passes and gives each token more context; with
stride = seq_len no token is read twice but in the last window, which is as long as the others.

n tokens of a row, B windows of a batch, T tokens of the longest
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgpt.data.shards import SourceTokens

IGNORE = -100  # a target that does not count


class Row(Protocol):
    """A sequence of tokens, read by ranges."""

    @property
    def n_tokens(self) -> int: ...

    def read(self, start: int, stop: int) -> NDArray[np.integer]:
        """Tokens start to stop."""


@dataclass(frozen=True)
class Text:
    """The tokens of a document, in memory."""

    ids: NDArray[np.integer]

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> NDArray[np.integer]:
        return self.ids[start:stop]


@dataclass(frozen=True)
class Stream:
    """The tokens of a source of prepared data, in its files."""

    source: SourceTokens

    @property
    def n_tokens(self) -> int:
        return self.source.n_tokens

    def read(self, start: int, stop: int) -> NDArray[np.integer]:
        tokens: NDArray[np.integer] = self.source.gather(np.array([start]), stop - start)[0]
        return tokens


class Window(NamedTuple):
    """Predicts tokens `start` to `stop` of a row from those since `start` - 1, and scores those from `first` on."""

    row: int
    start: int
    first: int
    stop: int


class Batch(NamedTuple):
    tokens: Tensor  # (B, T) int64, padded on the right
    targets: Tensor  # (B, T) int64, -100 where a token is not scored


class Windows:
    """The windows of rows, by number; in memory is a number for each row."""

    def __init__(self, rows: Sequence[Row], *, seq_len: int, stride: int, eod_id: int) -> None:
        """1 <= stride <= seq_len."""
        self.rows, self.seq_len, self.stride, self.eod_id = rows, seq_len, stride, eod_id
        lengths = np.array([row.n_tokens for row in rows], np.int64)
        counts = np.where(lengths > 0, 1 + np.maximum(0, -(-(lengths - seq_len) // stride)), 0)
        self._ends = counts.cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> Window:
        row = int(np.searchsorted(self._ends, number, side="right"))
        before = int(self._ends[row - 1]) if row else 0
        return window(row, number - before, self.rows[row].n_tokens, self.seq_len, self.stride)

    def batch(self, first: int, count: int) -> Batch:
        """Windows `first` to `first + count` as tensors."""
        windows = [self[number] for number in range(first, first + count)]
        longest = max(w.stop - w.start for w in windows)
        tokens = torch.full((count, longest), self.eod_id)
        targets = torch.full((count, longest), IGNORE)
        for i, w in enumerate(windows):
            ids = torch.from_numpy(self._read(w).astype(np.int64))
            tokens[i, : len(ids) - 1] = ids[:-1]
            targets[i, w.first - w.start : len(ids) - 1] = ids[w.first - w.start + 1 :]
        return Batch(tokens, targets)

    def _read(self, w: Window) -> NDArray[np.integer]:
        """The token before the window, and those in it."""
        ids = self.rows[w.row].read(max(0, w.start - 1), w.stop)
        return ids if w.start else np.concatenate(([self.eod_id], ids))


def window(row: int, number: int, n_tokens: int, seq_len: int, stride: int) -> Window:
    """The `number`-th window of a row of n_tokens (see the top of this file)."""
    if number == 0:
        return Window(row, 0, 0, min(seq_len, n_tokens))
    first = seq_len + (number - 1) * stride
    stop = min(first + stride, n_tokens)
    return Window(row, stop - seq_len, first, stop)
