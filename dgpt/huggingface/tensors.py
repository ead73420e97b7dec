"""The tensors of a model under both names, and how one becomes the other."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpt.config import ModelConfig
from dgpt.huggingface.names import Family, HeadKind, Layer
from dgpt.model.gpt import GPT

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """One tensor of theirs, and the tensors of ours that it is made of."""

    theirs: str
    ours: tuple[str, ...]
    rows: tuple[int, ...]  # of each of ours, below one another in theirs
    shape: Shape  # of theirs
    transposed: bool

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def to_theirs(self, tensors: Sequence[Tensor]) -> Tensor:
        """Rows of padding behind the vocabulary are left out. A bias that a model lacks is one of zeros."""
        if not tensors:
            return torch.zeros(self.shape)
        cut = [tensor[:rows] for tensor, rows in zip(tensors, self.rows, strict=True)]
        whole = torch.cat(cut) if len(cut) > 1 else cut[0]
        theirs = whole.mT if self.transposed else whole
        assert theirs.shape == self.shape, f"{self.theirs}: {theirs.shape} is not {self.shape}"
        return theirs

    def to_ours(self, tensor: Tensor) -> Sequence[Tensor]:
        """Views of a tensor of theirs."""
        return torch.split(tensor.mT if self.transposed else tensor, list(self.rows))


def shapes(config: ModelConfig, kind: HeadKind = "language_model", outputs: int = 0) -> dict[str, Shape]:
    """dgpt's parameters, in its order; outputs: rows of the task head, if `kind` has one."""
    with torch.device("meta"):
        found = {name: tuple(p.shape) for name, p in GPT(config).named_parameters()}
    if kind == "language_model":
        return found
    found.pop("head.weight", None)
    found["task_head.weight"] = (outputs, config.n_embd)
    return found | ({"task_head.bias": (outputs,)} if kind == "extractive_qa" else {})


def pairs(config: ModelConfig, family: Family, kind: HeadKind = "language_model", outputs: int = 0) -> list[Pair]:
    """Every tensor of the model, in the order in which dgpt's parameters complete theirs."""
    ours = shapes(config, kind, outputs)
    bare = config.model_copy(update={"vocab_multiple": 1, "bias": config.bias or family.always_biased})
    whole = shapes(bare, kind, outputs)
    return [_pair(theirs, names, conv1d, ours, whole) for theirs, names, conv1d in _names(config, family, kind)
            if names[0] in whole]  # fmt: skip


def _pair(theirs: str, names: tuple[str, ...], conv1d: bool, ours: dict[str, Shape], whole: dict[str, Shape]) -> Pair:
    rows = tuple(whole[name][0] for name in names)
    shape = (sum(rows), *whole[names[0]][1:])
    transposed = conv1d and len(shape) == 2
    present = names if names[0] in ours else ()
    return Pair(theirs, present, rows, shape[::-1] if transposed else shape, transposed)


def _names(config: ModelConfig, family: Family, kind: HeadKind) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """Each tensor that there could be: its name, our names of what it holds, and whether it may be transposed."""
    head = family.heads[kind]
    base = head.base or family.base
    *before, final_norm = family.outer
    for layer in before:
        yield from _parts(f"{base}.", "", layer)
    for i in range(config.n_layer):
        for layer in family.inner:
            yield from _parts(f"{base}.{family.block}.{i}.", f"blocks.{i}.", layer)
    yield from _parts(f"{base}.", "", final_norm)
    yield from _parts("", "", head.layer)


def _parts(their_prefix: str, our_prefix: str, layer: Layer) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    for part in ("weight", "bias"):
        yield (f"{their_prefix}{layer.theirs}.{part}", tuple(f"{our_prefix}{name}.{part}" for name in layer.ours),
               layer.conv1d)  # fmt: skip
