"""Causal attention on a CPU as a few large matrix products.

The fused kernel behind `F.scaled_dot_product_attention` multiplies many small blocks on a CPU, which leaves most of
the speed of bf16 unused: batched products are 2.8 times as fast forward and backward at T = 256, in fp32 1.4 times
(docs/decisions/speed_on_cpu.md). The price: the probabilities are kept for the backward pass, H * T / 2 numbers a
token and layer; activation checkpointing of attention frees them.

B batch, T sequence, H heads, D head_dim, N = B * H, n rows of a block; keys after the last row of a block are left out
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_ROWS = 128  # queries at once: more waste products above the diagonal, fewer make the products small


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q @ k.T / sqrt(D)) @ v, where each token looks at itself and those before it.

    q (B, H, T, D), k and v the same or with fewer heads (grouped-query attention) -> (B, H, T, D).
    """
    if q.size(1) != k.size(1):
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    y: Tensor = _CausalAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
    return y


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = q.shape[:2]
        y = q.new_empty(q.transpose(1, 2).shape).transpose(1, 2)  # (B, H, T, D), laid out so that heads join for free
        q, k, v = (x.contiguous().flatten(0, 1) for x in (q, k, v))  # (N, T, D)
        blocks = []
        for rows, keys in _blocks(q.size(1)):
            p = _probabilities(q[:, rows], k[:, keys])  # (N, n, keys)
            y[:, :, rows] = (p @ v[:, keys]).view(*heads, *q[0, rows].shape)
            blocks.append(p)
        ctx.save_for_backward(q, k, v, y, *blocks)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, y, *blocks = ctx.saved_tensors
        heads, scale = y.shape[:2], q.size(-1) ** -0.5
        mean = (grad * y).sum(dim=-1, keepdim=True).flatten(0, 1)  # (N, T, 1), of the gradients of a row, by p
        grad = grad.contiguous().flatten(0, 1)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (rows, keys), p in zip(_blocks(q.size(1)), blocks, strict=True):
            dv[:, keys] += p.mT @ grad[:, rows]
            dscores = (grad[:, rows] @ v[:, keys].mT).sub_(mean[:, rows]).mul_(p)  # (N, n, keys)
            dq[:, rows] = dscores @ k[:, keys]
            dk[:, keys] += dscores.mT @ q[:, rows]
        return tuple(x.view(*heads, *x.shape[1:]) for x in (dq.mul_(scale), dk.mul_(scale), dv))


def _blocks(length: int) -> list[tuple[slice, slice]]:
    """Rows of each block of queries, and the keys that they look at."""
    starts = range(0, length, BLOCK_ROWS)
    return [(slice(start, stop), slice(0, stop)) for start in starts for stop in [min(start + BLOCK_ROWS, length)]]


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    """The last n queries (N, n, D) of k.size(1) tokens, and the keys (N, K, D) -> (N, n, K)."""
    n, keys = q.size(1), k.size(1)
    future = torch.full((n, keys), float("-inf"), dtype=q.dtype, device=q.device).triu_(keys - n + 1)
    return torch.baddbmm(future, q, k.mT, alpha=q.size(-1) ** -0.5).softmax(dim=-1)
