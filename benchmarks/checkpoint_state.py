"""The state of a GPT in training, cut over ranks: fp32 weights and both moments of AdamW, as ZeRO 1 holds them.

DeepSpeed lays the parameters of an optimizer group end to end and gives each data parallel rank an equal piece; so a
rank holds a few large flat tensors, and fragments are views of them. Values follow from names, so that what was loaded
can be compared with what should have been.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from dgpt.checkpoint import MeshEntry
from dgpt.config import RunConfig, load_config
from dgpt.fragments import Fragment
from dgpt.model.gpt import GPT
from dgpt.parallel.tensor import tp_axis
from dgpt.train.optimizer import decays

STATES = ("weight", "exp_avg", "exp_avg_sq")
RUN = Path(__file__).parents[1] / "configs" / "pretrain" / "gpt2_124m.toml"
LAYER = 12 * 768**2  # elements, without biases and norms


@dataclass(frozen=True)
class Topology:
    """data parallel x tensor parallel ranks, TP innermost."""

    dp: int
    tp: int = 1

    @property
    def ranks(self) -> int:
        return self.dp * self.tp

    @property
    def mesh(self) -> MeshEntry:
        return MeshEntry(world_size=self.ranks, dp_size=self.dp, tp=self.tp, zero_stage=1)

    def __str__(self) -> str:
        return f"dp{self.dp}" if self.tp == 1 else f"dp{self.dp}-tp{self.tp}"


def config_of(gb: float) -> RunConfig:
    """GPT-2 with the width and vocabulary of the 124M model, and as many layers as make `gb` GB (1 at least)."""
    embeddings = (50304 + 1024) * 768
    layers = max(1, round((gb * 1e9 / (4 * len(STATES)) - embeddings) / LAYER))
    return load_config(RUN, [f"model.n_layer={layers}", "model.vocab_size=50257"])


def shapes_of(config: RunConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in GPT(config.model).named_parameters()}


def state_of(shapes: dict[str, tuple[int, ...]], topology: Topology, rank: int) -> tuple[list[Tensor], list[Fragment]]:
    """A rank's state: its flat tensors, one for each group and state, and the fragments that are views of them."""
    flats, fragments = [], []
    for state in STATES:
        for group in (True, False):
            cuts = list(_cuts({n: s for n, s in shapes.items() if decays(n) is group}, topology, rank))
            flat = torch.empty(sum(high - low for _, low, high in cuts))
            flats.append(flat)
            for name, low, high in cuts:
                piece, flat = flat[: high - low], flat[high - low :]
                fragments.append(_fragment(name, state, shapes[name], topology, rank, low, piece))
    for fragment in fragments:
        fragment.tensor.copy_(expected(fragment))
    return flats, fragments


def expected(f: Fragment) -> Tensor:
    """The elements that a fragment should hold."""
    generator = torch.Generator().manual_seed(crc32(f"{f.state}/{f.name}".encode()))
    whole = torch.rand(f.shape, generator=generator)
    part = whole if f.tp_axis is None else whole.chunk(f.tp_size, f.tp_axis)[f.tp_rank]
    return part.flatten()[f.start : f.start + f.tensor.numel()]


def _cuts(shapes: dict[str, tuple[int, ...]], topology: Topology, rank: int) -> Iterator[tuple[str, int, int]]:
    """(name, first, end) of the elements of TP parts that a rank holds, in the order of its flat tensor."""
    dp_rank, numels = rank // topology.tp, {}
    for name, shape in shapes.items():
        numels[name] = torch.Size(shape).numel() // (topology.tp if tp_axis(name) is not None else 1)
    share, before = -(-sum(numels.values()) // topology.dp), 0
    for name, numel in numels.items():
        low, high = (min(max(share * i - before, 0), numel) for i in (dp_rank, dp_rank + 1))
        before += numel
        if low < high:
            yield name, low, high


def _fragment(
    name: str, state: str, shape: tuple[int, ...], topology: Topology, rank: int, start: int, tensor: Tensor
) -> Fragment:
    tp_rank, tp = rank % topology.tp, topology.tp
    axis = tp_axis(name) if tp > 1 else None
    replica, replicas = (tp_rank, tp) if axis is None else (0, 1)
    return Fragment(name, state, shape, axis, tp_rank, tp, start, tensor, replica, replicas)
