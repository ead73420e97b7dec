"""Cross-entropy of a linear head without ever holding the logits of the whole batch.

Each chunk's gradient is computed while its logits are there, so backward needs no second product with the head (the
idea of arXiv:2410.10989, section 3.2). N tokens, n tokens of a chunk, C n_embd, V vocabulary rows on this rank.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100  # a target that does not count, as in torch.nn.functional.cross_entropy


class Vocab:
    """Reductions over the vocabulary. The whole vocabulary is here; a TP rank has a subclass (dgpt.parallel.tensor)."""

    first = 0  # token id of the first row on this rank

    def max(self, x: Tensor) -> Tensor:
        return x

    def sum(self, x: Tensor) -> Tensor:
        return x


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk_tokens: int,
    z_loss: float = 0.0,
    vocab: Vocab | None = None,
) -> Tensor:
    """Mean of -log softmax(hidden @ weight.T)[target] + z_loss * log(Z)^2 over the targets that are not -100.

    hidden (N, C), weight (V, C), targets (N,) int64 -> scalar, in fp32 at least. z_loss: arXiv:2204.02311, section 5.
    """
    vocab = vocab or Vocab()
    # Asked here: inside a Function gradients look disabled, and its needs_input_grad does not know of no_grad.
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, chunk_tokens, z_loss, vocab, needs_grad)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk_tokens: int,
        z_loss: float,
        vocab: Vocab,
        needs_grad: bool,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        counted = (targets != IGNORE).to(wide)
        shares = counted / counted.sum().clamp(min=1)  # (N,), of each token in the mean
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grad_weight: Tensor | None = None
        for start in range(0, len(hidden), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits = (hidden[rows] @ weight.T).to(wide)  # (n, V)
            losses, grad = _chunk(logits, targets[rows], z_loss, vocab)
            total += losses @ shares[rows]
            if grad_hidden is not None:
                grad = grad.mul_(shares[rows, None]).to(weight.dtype)
                torch.mm(grad, weight, out=grad_hidden[rows])
                grad_weight = _accumulate(grad_weight, grad.T @ hidden[rows], wide)
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_output, grad_weight * grad_output, None, None, None, None, None


def _chunk(logits: Tensor, targets: Tensor, z_loss: float, vocab: Vocab) -> tuple[Tensor, Tensor]:
    """Losses (n,) and their gradient with respect to `logits` (n, V), which is overwritten."""
    peak = vocab.max(logits.amax(dim=1))
    logits.sub_(peak[:, None])
    column = targets - vocab.first
    here = (column >= 0) & (column < logits.size(1))
    column = column.where(here, 0)[:, None]
    target_logit = vocab.sum(logits.gather(1, column)[:, 0] * here)
    exp = logits.exp_()
    z = vocab.sum(exp.sum(dim=1))
    log_z = z.log() + peak  # of the logits as they came
    losses = z.log() - target_logit + z_loss * log_z.square()
    grad = exp.mul_(((1 + 2 * z_loss * log_z) / z)[:, None])
    grad.scatter_add_(1, column, -here[:, None].to(grad.dtype))
    return losses, grad


def _accumulate(total: Tensor | None, part: Tensor, wide: torch.dtype) -> Tensor:
    """Sum in fp32 over chunks; a single chunk costs nothing."""
    if total is None:
        return part
    return total.to(wide).add_(part)
