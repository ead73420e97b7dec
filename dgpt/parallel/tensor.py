"""Tensor parallelism: a table of which parameter is cut along which axis, and the layers that are swapped in.

Megatron's scheme (arXiv:1909.08053): q, k, v, up and gate are cut by rows of their weight, proj and down by columns,
embedding and head by the vocabulary. The activation enters a sublayer through f once and leaves it through g once.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from dgpt.model.gpt import GPT, Context, Head
from dgpt.model.loss import Vocab, linear_cross_entropy
from dgpt.parallel import collectives as c
from dgpt.parallel.mesh import Mesh

# parameter pattern -> axis along which it is cut (None: every TP rank has all of it)
TP_TABLE: tuple[tuple[str, int | None], ...] = (
    (r"wte\.weight|head\.weight", 0),  # vocab
    (r"blocks\.\d+\.attn\.[qkv]\.(weight|bias)", 0),  # column: the heads
    (r"blocks\.\d+\.mlp\.(up|gate)\.(weight|bias)", 0),  # column: the hidden units
    (r"blocks\.\d+\.(attn\.proj|mlp\.down)\.weight", 1),  # row
    (r"blocks\.\d+\.(attn\.proj|mlp\.down)\.bias", None),
    (r"wpe\.weight|(blocks\.\d+\.norm[12]|norm)\.(weight|bias)", None),
)


def tp_axis(name: str) -> int | None:
    """Axis along which the parameter `name` is cut. Raises KeyError unless exactly one row of the table matches."""
    axes = [axis for pattern, axis in TP_TABLE if re.fullmatch(pattern, name)]
    if len(axes) != 1:
        raise KeyError(f"parameter {name} matches {len(axes)} rows of TP_TABLE")
    return axes[0]


class Region:
    """How activations enter (f) and leave (g) the layers that are cut over `group`."""

    def __init__(self, group: dist.ProcessGroup, sequence_parallel: bool) -> None:
        self.group = group
        self.sequence_parallel = sequence_parallel

    def enter(self, x: Tensor) -> Tensor:
        return _apply(c.GatherSequence if self.sequence_parallel else c.Copy, x, self.group)

    def leave(self, x: Tensor) -> Tensor:
        return _apply(c.ReduceScatterSequence if self.sequence_parallel else c.Reduce, x, self.group)


def _apply(function: type[torch.autograd.Function], x: Tensor, group: dist.ProcessGroup) -> Tensor:
    y: Tensor = function.apply(x, group)  # type: ignore[no-untyped-call]
    return y


class RowLinear(nn.Module):
    """Linear whose input is cut: partial products are summed over the group, then the bias is added once."""

    def __init__(self, linear: nn.Linear, region: Region) -> None:
        super().__init__()
        self.weight, self.bias, self.region = linear.weight, linear.bias, region

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in/tp) -> (B, T, out), with sequence parallelism (B, T/tp, out)."""
        y = self.region.leave(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias


class VocabEmbedding(nn.Module):
    """Embedding of which this rank has V/tp rows; tokens of other ranks give zeros before the sum."""

    def __init__(self, embedding: nn.Embedding, region: Region) -> None:
        super().__init__()
        self.weight, self.region = embedding.weight, region
        self.rows = embedding.weight.size(0)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, C), with sequence parallelism (B, T/tp, C)."""
        local = tokens - self.region.group.rank() * self.rows
        here = (local >= 0) & (local < self.rows)
        x = F.embedding(local.where(here, 0), self.weight)
        return self.region.leave(x * here[..., None])


class SequenceEmbedding(nn.Module):
    """Position embedding for this rank's piece of the sequence (sequence parallelism)."""

    def __init__(self, embedding: nn.Embedding, region: Region) -> None:
        super().__init__()
        self.weight, self.region = embedding.weight, region

    def forward(self, positions: Tensor) -> Tensor:
        """(1 or B, T) -> (1 or B, T/tp, C)."""
        return F.embedding(c.own_piece(positions, self.region.group, dim=1), self.weight)


class VocabShard(Vocab):
    """Reductions of the loss over a vocabulary that is cut over `group`."""

    def __init__(self, group: dist.ProcessGroup, rows: int) -> None:
        self.group = group
        self.first = group.rank() * rows

    def max(self, x: Tensor) -> Tensor:
        return c.all_reduce(x, self.group, dist.ReduceOp.MAX)

    def sum(self, x: Tensor) -> Tensor:
        return c.all_reduce(x, self.group)


class VocabHead(nn.Module):
    """Head with V/tp rows: the loss needs three small reductions a chunk, never the whole logits."""

    def __init__(self, head: Head, region: Region) -> None:
        super().__init__()
        self.weight, self.region = head.weight, region
        self.vocab = VocabShard(region.group, head.weight.size(0))
        self.chunk_tokens, self.z_loss = head.chunk_tokens, head.z_loss

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """x (B, T, C), or (B, T/tp, C) with sequence parallelism -> logits (B, T, V) without gradient, or the loss."""
        x = self.region.enter(x)
        if targets is None:
            return c.all_gather(F.linear(x, self.weight).detach(), self.region.group, dim=-1)
        z_loss = self.z_loss if self.training else 0.0  # as in Head
        return linear_cross_entropy(x.flatten(0, 1), self.weight, targets.flatten(), chunk_tokens=self.chunk_tokens,
                                    z_loss=z_loss, vocab=self.vocab)  # fmt: skip


class OwnRandomness(nn.Module):
    """Runs a module whose activations are cut over TP ranks with random numbers of this rank's own.

    Activations that every TP rank holds must drop alike, so the default generator is in the same state on all of them;
    it gives the seed here and moves on alike. Recomputation restores that state, and with it these numbers.
    """

    def __init__(self, module: nn.Module, region: Region) -> None:
        super().__init__()
        self.module, self.tp_rank = module, region.group.rank()

    def forward(self, *args: Tensor | Context) -> Tensor:
        if not self.training:
            return self.module(*args)  # type: ignore[no-any-return]
        seed = int(torch.randint(1 << 62, ())) + self.tp_rank
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            torch.manual_seed(seed)
            return self.module(*args)  # type: ignore[no-any-return]


# module pattern -> the layer that takes its place
SWAPS: tuple[tuple[str, Callable[[Any, Region], nn.Module]], ...] = (
    (r"wte", VocabEmbedding),
    (r"head", VocabHead),
    (r"blocks\.\d+\.(attn\.proj|mlp\.down)", RowLinear),
)
SUBLAYERS = r"blocks\.\d+\.(attn|mlp)"  # activations enter the cut layers here
CUT_DROPOUT = r"blocks\.\d+\.attn\.attend"  # over the heads
CUT_DROPOUT_SEQUENCE = r"drop|blocks\.\d+\.drop[12]"  # over the sequence, with sequence parallelism


def apply_tensor_parallel(model: GPT, mesh: Mesh, sequence_parallel: bool) -> None:
    """Cut a model on the meta device down to this rank's part, in place. Does nothing at tp = 1.

    Parameters that are cut get the mark `tensor_model_parallel`, which DeepSpeed reads for the gradient norm.
    """
    if mesh.tp_group is None or mesh.tp_size == 1:
        return
    _cut_parameters(model, mesh.tp_size)
    region = Region(mesh.tp_group, sequence_parallel)
    for _, sublayer in _matching(model, SUBLAYERS):
        sublayer.register_forward_pre_hook(lambda _, args: (region.enter(args[0]), *args[1:]))
    for pattern, layer in SWAPS:
        _swap(model, pattern, layer, region)
    if model.config.dropout:
        _swap(model, CUT_DROPOUT, OwnRandomness, region)
    if sequence_parallel:
        _cut_sequence(model, region)


def _cut_parameters(model: GPT, tp: int) -> None:
    for name, parameter in list(model.named_parameters()):
        axis = tp_axis(name)
        if axis is None:
            continue
        shape = [n // tp if i == axis else n for i, n in enumerate(parameter.shape)]
        part = nn.Parameter(torch.empty(shape, device=parameter.device))
        part.tensor_model_parallel = True  # type: ignore[attr-defined]
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, part)
    model.tie_weights()


def _cut_sequence(model: GPT, region: Region) -> None:
    """Replicated parameters see a piece of the sequence each, so their gradients are summed over the TP group."""
    _swap(model, r"wpe", SequenceEmbedding, region)
    if model.config.dropout:
        _swap(model, CUT_DROPOUT_SEQUENCE, OwnRandomness, region)
    for name, parameter in model.named_parameters():
        if tp_axis(name) is None:
            parameter.register_hook(lambda grad: c.all_reduce(grad, region.group))  # type: ignore[no-untyped-call]


def _matching(model: GPT, pattern: str) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if re.fullmatch(pattern, name)]


def _swap(model: GPT, pattern: str, layer: Callable[[Any, Region], nn.Module], region: Region) -> None:
    for name, module in _matching(model, pattern):
        model.set_submodule(name, layer(module, region))
