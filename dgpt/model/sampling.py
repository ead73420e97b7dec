"""How the next token is drawn: repetition penalty, temperature, top-k, top-p and min-p, each sample with random numbers
of its own.

B sequences, V vocabulary, n candidates of a sequence
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpt.errors import UserError

NUCLEUS = 1024  # candidates that top-p looks at first: to sort a whole vocabulary costs more than a small model


@dataclass(frozen=True)
class Sampling:
    """The settings of a draw. Raises UserError for a value out of its range."""

    max_new_tokens: int = 64
    temperature: float = 1.0  # 0: always the most likely token
    top_k: int = 0  # draw from the k most likely tokens; 0: from all
    top_p: float = 1.0  # then from the smallest set of likely tokens with this probability (arXiv:1904.09751)
    min_p: float = 0.0  # then from tokens with at least this share of the likeliest's probability (arXiv:2407.01082)
    repetition_penalty: float = 1.0  # before all that: tokens of prompt and text become less likely (arXiv:1909.05858)
    seed: int = 1337

    def __post_init__(self) -> None:
        rules = (
            ("max_new_tokens", 1 <= self.max_new_tokens <= 10**6, "from 1 to 1,000,000", "64"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more, and finite", "1.0, or 0 for greedy"),
            ("top_k", self.top_k >= 0, "0 (off) or more", "50, or 0 to turn it off"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (off)", "0.95, or 1 to turn it off"),
            ("min_p", 0 <= self.min_p < 1, "from 0 (off) to below 1", "0.05, or 0 to turn it off"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0 and finite (1 is off)",
             "1.2, or 1 to turn it off"),
        )  # fmt: skip
        for name, holds, rule, example in rules:
            if not holds:
                value = getattr(self, name)
                raise UserError(f"{name} = {value} cannot be used", rule=f"{name} is {rule}", fix=f"try {example}")


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """The next token of each sequence: logits (B, V) and random numbers in [0, 1) (B,) -> (B,) int64.

    In this order: temperature, top-k, top-p of what top-k left, min-p. A row's token depends on that row alone.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    tokens: Tensor | None = None  # of the candidates; None: all, in their own order
    if sampling.top_k:
        logits, tokens = logits.topk(min(sampling.top_k, logits.size(-1)), dim=-1)  # (B, n), the likeliest first
    p = (logits.double() / sampling.temperature).softmax(dim=-1)
    if sampling.top_p < 1:
        p, tokens = _nucleus(p, sampling.top_p) if tokens is None else (_up_to(p, sampling.top_p), tokens)
    if sampling.min_p:
        p = p * (p >= sampling.min_p * p.amax(dim=-1, keepdim=True))
    index = _draw(p, uniform)
    return (index if tokens is None else tokens.gather(-1, index))[:, 0]


def _nucleus(p: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest of all tokens: their probabilities (B, n), those left out 0, and the tokens."""
    values, tokens = p.topk(min(NUCLEUS, p.size(-1)), dim=-1)
    if values.size(-1) < p.size(-1) and bool((values.sum(dim=-1) < top_p).any()):
        values, tokens = p.sort(dim=-1, descending=True)
    return _up_to(values, top_p), tokens


def _up_to(p: Tensor, top_p: float) -> Tensor:
    """A token stays if those before it do not reach top_p; p (B, n), the likeliest first."""
    return p * (p.cumsum(dim=-1) - p < top_p)


def _draw(p: Tensor, uniform: Tensor) -> Tensor:
    """An index of a candidate with a probability above 0: p (B, n), which need not sum to 1, uniform (B,) -> (B, 1)."""
    cumulative = p.cumsum(dim=-1)
    total = cumulative[:, -1]
    below = total.nextafter(torch.zeros_like(total))  # rounding might else reach the total
    return torch.searchsorted(cumulative, torch.minimum(uniform * total, below)[:, None], right=True)


class Seen:
    """Which tokens each sequence holds, for the repetition penalty of CTRL (arXiv:1909.05858, section 4.1)."""

    def __init__(self, sequences: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> None:
        self.mask = torch.zeros(len(sequences), vocab_size, dtype=torch.bool, device=device)  # (B, V)
        for row, tokens in zip(self.mask, sequences, strict=True):
            row[list(tokens)] = True

    def add(self, tokens: Tensor) -> None:
        """One more token (B,) of each sequence."""
        self.mask.scatter_(1, tokens[:, None], True)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but `rows`."""
        self.mask = self.mask[list(rows)]

    def penalise(self, logits: Tensor, penalty: float) -> Tensor:
        """Logits (B, V) of seen tokens, divided by `penalty` if positive, else multiplied."""
        return torch.where(self.mask, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def random_numbers(seed: int, prompt: Sequence[int], sample: int, count: int) -> Tensor:
    """`count` uniform numbers in [0, 1), float64, a function of the arguments: sample `sample` of `prompt`.

    A larger count continues a smaller one, and no other prompt or sample in the batch has a say.
    """
    digest = hashlib.sha256(f"{seed}/{sample}/{list(prompt)}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(count, dtype=torch.float64, generator=generator)
