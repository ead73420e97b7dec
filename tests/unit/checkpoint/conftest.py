"""Virtual ranks: the fragments that engines of any topology would hold, cut from one random model, no process group."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpt.checkpoint import Checkpointer, MeshEntry, Meta, list_checkpoints
from dgpt.config import RunConfig
from dgpt.errors import StorageError
from dgpt.fragments import Fragment

STATES = ("weight", "exp_avg", "exp_avg_sq")
SHAPES: dict[str, tuple[tuple[int, ...], int | None]] = {  # name -> shape, TP axis
    "wte.weight": ((24, 10), 0),
    "q.weight": ((12, 10), 0),
    "q.bias": ((12,), 0),
    "proj.weight": ((7, 12), 1),
    "norm.weight": ((13,), None),
    "odd.weight": ((5, 7), None),
    "scale": ((), None),
}
State = dict[tuple[str, str], Tensor]  # (tensor, state) -> whole tensor


@dataclass(frozen=True)
class Topology:
    """zero: 0 replicates over dp, 1 cuts the flat concatenation of all parameters, 3 cuts each parameter."""

    zero: int
    dp: int
    tp: int
    states: tuple[str, ...] = STATES
    shapes: dict[str, tuple[tuple[int, ...], int | None]] = field(default_factory=lambda: SHAPES, hash=False)

    def __str__(self) -> str:
        return f"zero{self.zero}-dp{self.dp}-tp{self.tp}"

    @property
    def mesh(self) -> MeshEntry:
        return MeshEntry(world_size=self.dp * self.tp, dp_size=self.dp, tp=self.tp, zero_stage=self.zero)

    def cut(self, state: State) -> list[list[Fragment]]:
        """The fragments of each rank (tp innermost); their tensors are views of memory of the rank's own."""
        return [[f for s in self.states for f in self._rank(state, s, d, t)] for d in range(self.dp)
                for t in range(self.tp)]  # fmt: skip

    def _rank(self, state: State, name_of_state: str, dp_rank: int, tp_rank: int) -> list[Fragment]:
        fragments, before = [], 0
        total = sum(self._part(state[name, name_of_state], name, 0).numel() for name in self.shapes)
        for name, (shape, axis) in self.shapes.items():
            part = self._part(state[name, name_of_state], name, tp_rank)
            first, size = (before, total) if self.zero == 1 else (0, part.numel())
            share = -(-size // self.dp)
            low, high = (min(max(share * i - first, 0), part.numel()) for i in (dp_rank, dp_rank + 1))
            replica, replicas = (tp_rank, self.tp) if axis is None else (0, 1)
            if self.zero == 0:
                low, high = 0, part.numel()
                replica, replicas = dp_rank * replicas + replica, self.dp * replicas
            before += part.numel()
            if low < high:
                fragments.append(Fragment(name, name_of_state, shape, axis if self.tp > 1 else None, tp_rank, self.tp,
                                          low, part[low:high].clone(), replica, replicas))  # fmt: skip
        return fragments

    def _part(self, whole: Tensor, name: str, tp_rank: int) -> Tensor:
        axis = self.shapes[name][1]
        return (whole if axis is None else whole.chunk(self.tp, axis)[tp_rank]).flatten()


def random_state(seed: int, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {(name, state): torch.randn(shape, generator=generator).to(dtype)
            for name, (shape, _) in SHAPES.items() for state in STATES}  # fmt: skip


def make_meta(**changes: Any) -> Meta:
    values = {"tokens": 5000, "samples": 640, "loss": 2.5, "data_hash": "d" * 64, "tokenizer_hash": "t" * 64,
              "config": RunConfig().model_dump(mode="json")}  # fmt: skip
    return Meta(**{**values, **changes})


@dataclass
class Job:
    """All ranks of one start of a training job."""

    run_dir: Path
    topology: Topology
    attempt: str = "a1"
    keep_last: int = 3
    keep_every: int = 0
    stall_seconds: float = 5.0
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ranks = [
            Checkpointer(self.run_dir, rank, self.topology.mesh, self.attempt, keep_last=self.keep_last,
                         keep_every=self.keep_every, report=self.said.append, stall_seconds=self.stall_seconds)
            for rank in range(self.topology.mesh.world_size)
        ]  # fmt: skip

    def save(self, step: int, state: State, **meta: Any) -> Path:
        with ThreadPoolExecutor(len(self.ranks)) as threads:  # after two failures each waits for all
            list(threads.map(lambda rank, own: rank.save(step, own, make_meta(**meta)), self.ranks,
                             self.topology.cut(state)))  # fmt: skip
        self.wait()
        return self.run_dir / "checkpoints" / f"step_{step:08d}"

    def gives_up(self, step: int, state: State) -> None:
        """Saves, and this is the third failure in a row on every rank."""
        with pytest.raises(StorageError, match="failure 3 in a row"):
            self.save(step, state)
        for checkpointer in self.ranks:
            with pytest.raises(StorageError, match="failure 3 in a row"):
                checkpointer.wait()

    @property
    def steps(self) -> list[int]:
        return [row.step for row in list_checkpoints(self.run_dir)]

    @property
    def leftovers(self) -> list[str]:
        """Temporary folders."""
        return sorted(path.name for path in (self.run_dir / "checkpoints").iterdir() if "." in path.name)

    def wait(self) -> None:
        for checkpointer in self.ranks:
            checkpointer.wait()


@pytest.fixture
def topology() -> type[Topology]:
    return Topology


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """job(topology, ...): a Job in this test's run folder."""
    return lambda topology=Topology(1, 2, 1), **options: Job(options.pop("run_dir", tmp_path), topology, **options)


@pytest.fixture
def state() -> Callable[..., State]:
    return random_state


@pytest.fixture
def meta() -> Callable[..., Meta]:
    return make_meta
