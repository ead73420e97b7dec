"""Decoding: a batch of sequences of any lengths grows token by token, with a key/value cache.

B sequences, T tokens of the longest prompt, C n_embd, V vocabulary
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dgpt.model.cache import KVCache
from dgpt.model.gpt import GPT
from dgpt.model.sampling import Sampling, Seen, choose, random_numbers

Reason = Literal["", "stop", "length", "context"]


@dataclass
class Sample:
    """One continuation of one prompt."""

    prompt: Sequence[int]
    number: int  # among the samples of its prompt, from 0
    tokens: list[int] = field(default_factory=list)  # new ones, without the stop id
    reason: Reason = ""  # why it ended: a stop id or `watch`, max_new_tokens, or the context is full
    watch: Callable[[int], bool] | None = None  # takes each new token, and says whether the sample ends with it

    def take(self, token: int, stop_ids: Collection[int], max_new_tokens: int, seq_len: int) -> None:
        """One more token, which may be the last."""
        if token in stop_ids:
            self.reason = "stop"
            return
        self.tokens.append(token)
        if self.watch is not None and self.watch(token):
            self.reason = "stop"
        elif len(self.tokens) == max_new_tokens:
            self.reason = "length"
        elif len(self.prompt) + len(self.tokens) >= seq_len:
            self.reason = "context"


@torch.no_grad()
def decode(
    model: GPT,
    batch: Sequence[Sample],
    sampling: Sampling,
    vocab_size: int,
    stop_ids: Collection[int],
    never: Collection[int] = (),
) -> Iterator[None]:
    """Complete the samples of `batch` together; yields whenever each of those that go on has one more token.

    Tokens from `vocab_size` on and those in `never` are not drawn.
    """
    device, seq_len = model.wte.weight.device, model.config.seq_len
    active, lengths = list(batch), [len(sample.prompt) for sample in batch]
    room = min(seq_len, max(lengths) + sampling.max_new_tokens)
    cache = KVCache(model.config.n_layer, len(active), room, device)
    drawer = Drawer(active, sampling, vocab_size, never, device)
    tokens = torch.tensor([[*s.prompt, *[0] * (max(lengths) - len(s.prompt))] for s in batch], device=device)  # (B, T)
    with _evaluating(model):
        last = [length - 1 for length in lengths]
        x = model.hidden(tokens, cache=cache)[range(len(batch)), last]  # (B, C)
        cache.advance(lengths)
        while True:
            chosen = drawer.next(model.head(x[:, None])[:, 0, :vocab_size])  # (B,)
            for sample, token in zip(active, chosen.tolist(), strict=True):
                sample.take(token, stop_ids, sampling.max_new_tokens, seq_len)
            yield
            going = [row for row, sample in enumerate(active) if not sample.reason]
            if not going:
                return
            if len(going) < len(active):  # those that ended leave the batch
                cache.keep(going)
                drawer.keep(going)
                active, chosen = [active[row] for row in going], chosen[going]
            x = model.hidden(chosen[:, None], cache=cache)[:, 0]
            cache.advance([1] * len(going))


class Drawer:
    """Draws the next token of each sequence, and keeps what that takes: random numbers, and which tokens were seen."""

    def __init__(
        self, samples: Sequence[Sample], sampling: Sampling, vocab_size: int, never: Collection[int],
        device: torch.device,
    ) -> None:  # fmt: skip
        self.sampling, self.step = sampling, 0
        self.never = torch.tensor(sorted(never), dtype=torch.int64, device=device)
        count = sampling.max_new_tokens
        self.draws = torch.stack([random_numbers(sampling.seed, s.prompt, s.number, count) for s in samples]).to(device)
        penalised = sampling.repetition_penalty != 1
        self.seen = Seen([s.prompt for s in samples], vocab_size, device) if penalised else None

    def next(self, logits: Tensor) -> Tensor:
        """logits (B, V), which are changed -> (B,) int64."""
        logits.index_fill_(1, self.never, float("-inf"))
        if self.seen is not None:
            logits = self.seen.penalise(logits, self.sampling.repetition_penalty)
        chosen = choose(logits, self.draws[:, self.step], self.sampling)
        if self.seen is not None:
            self.seen.add(chosen)
        self.step += 1
        return chosen

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but `rows`."""
        self.draws = self.draws[list(rows)]
        if self.seen is not None:
            self.seen.keep(rows)


@contextmanager
def _evaluating(model: GPT) -> Iterator[None]:
    """Dropout off for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
