"""How the next token is drawn: temperature, top-k and top-p, each sample with random numbers of its own.

B sequences, V vocabulary
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpt.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """The settings of a draw. Raises UserError for a value out of its range."""

    max_new_tokens: int = 64
    temperature: float = 1.0  # 0: always the most likely token
    top_k: int = 0  # draw from the k most likely tokens; 0: from all
    top_p: float = 1.0  # then from the smallest set of likely tokens with this probability (arXiv:1904.09751)
    seed: int = 1337

    def __post_init__(self) -> None:
        rules = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1", "64"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more, and finite", "1.0, or 0 for greedy"),
            ("top_k", self.top_k >= 0, "0 (off) or more", "50, or 0 to turn it off"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (off)", "0.95, or 1 to turn it off"),
        )
        for name, holds, rule, example in rules:
            if not holds:
                value = getattr(self, name)
                raise UserError(f"{name} = {value} cannot be used", rule=f"{name} is {rule}", fix=f"try {example}")


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """The next token of each sequence: logits (B, V) and random numbers in [0, 1) (B,) -> (B,) int64.

    In this order: temperature, top-k, top-p of what top-k left. A row's token depends on that row alone.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    kept = min(sampling.top_k or logits.size(-1), logits.size(-1))
    values, tokens = logits.double().topk(kept, dim=-1)  # sorted, the most likely first
    p = (values / sampling.temperature).softmax(dim=-1)
    p = p * (p.cumsum(dim=-1) - p < sampling.top_p)  # a token stays if those before it do not reach top_p
    cumulative = p.cumsum(dim=-1)
    threshold = (uniform * cumulative[:, -1])[:, None]
    index = torch.searchsorted(cumulative, threshold, right=True).clamp(max=kept - 1)
    return tokens.gather(-1, index)[:, 0]


def random_numbers(seed: int, prompt: Sequence[int], sample: int, count: int) -> Tensor:
    """`count` uniform numbers in [0, 1), float64, a function of the arguments: sample `sample` of `prompt`.

    A larger count continues a smaller one, and no other prompt or sample in the batch has a say.
    """
    digest = hashlib.sha256(f"{seed}/{sample}/{list(prompt)}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(count, dtype=torch.float64, generator=generator)
