"""Log-likelihood of given tokens, one by one.

B sequences, T tokens, N of them that count, C n_embd, V vocabulary rows
"""

import torch
from torch import Tensor

from dgpt.model.gpt import GPT
from dgpt.model.loss import IGNORE

CHUNK_TOKENS = 512  # whose logits are there at once


@torch.no_grad()
def log_likelihood(
    model: GPT, tokens: Tensor, targets: Tensor, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """log p(target | tokens up to here), fp64 (B, T), 0 where the target is -100; and where it is the likeliest token.

    tokens and targets (B, T) int64. Logits exist for CHUNK_TOKENS counted tokens at a time. All V rows share in the
    softmax, as in the loss of training. documents: as in `GPT.forward`.
    """
    counted = targets != IGNORE  # (B, T)
    hidden, wanted = model.hidden(tokens, documents)[counted], targets[counted]  # (N, C), (N,)
    found = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    greedy = torch.zeros_like(counted)
    starts = range(0, len(wanted), CHUNK_TOKENS)
    chunks = [slice(start, start + CHUNK_TOKENS) for start in starts]
    parts = [_score(model.head(hidden[None, rows])[0], wanted[rows]) for rows in chunks]
    found[counted] = torch.cat([part[0] for part in parts])
    greedy[counted] = torch.cat([part[1] for part in parts])
    return found, greedy


def _score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """logits (n, V), targets (n,) -> (n,) fp64, (n,) bool."""
    logits = logits.float()
    chosen = logits.gather(1, targets[:, None])[:, 0]
    return chosen.double() - logits.logsumexp(dim=1).double(), logits.argmax(dim=1) == targets
