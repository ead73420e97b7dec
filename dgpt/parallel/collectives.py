"""Differentiable collectives of tensor parallelism: Megatron's f and g (arXiv:1909.08053, section 3), and their
sequence parallel forms (arXiv:2205.05198, section 4.2.2), where the residual stream is cut along T.

B batch, T sequence, C width
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # renamed in torch 2.13


def all_reduce(x: Tensor, group: Group, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Reduce over the group into a new tensor; not differentiable."""
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, op=op, group=group)
    return x


def all_gather(x: Tensor, group: Group, dim: int) -> Tensor:
    """Concatenate every rank's x along `dim`; not differentiable."""
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, dim=dim)


def reduce_scatter(x: Tensor, group: Group, dim: int) -> Tensor:
    """Sum over the group, and keep this rank's piece of `dim`; not differentiable."""
    pieces = torch.stack(x.chunk(group.size(), dim))
    own = torch.empty_like(pieces[0])
    _reduce_scatter(own, pieces.flatten(0, 1), group=group)
    return own


def own_piece(x: Tensor, group: Group, dim: int) -> Tensor:
    """This rank's piece of x along `dim`."""
    return x.chunk(group.size(), dim)[group.rank()]


class Copy(torch.autograd.Function):
    """f: forward the same x on every rank, backward the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce(grad, ctx.group), None


class Reduce(torch.autograd.Function):
    """g: forward the sum over ranks, backward the same gradient on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class GatherSequence(torch.autograd.Function):
    """f of sequence parallelism: (B, T/tp, C) -> (B, T, C); backward sums and cuts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return all_gather(x, group, dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return reduce_scatter(grad, ctx.group, dim=1), None


class ReduceScatterSequence(torch.autograd.Function):
    """g of sequence parallelism: partial sums (B, T, C) -> (B, T/tp, C); backward gathers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return reduce_scatter(x, group, dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_gather(grad, ctx.group, dim=1), None
