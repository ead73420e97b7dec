"""The rank grid: world = dp x tp, tensor parallelism innermost so that a TP group stays inside a node."""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from dgpt.errors import UserError


@dataclass(frozen=True)
class ParallelDims:
    """Arithmetic of the grid. `dp` is derived."""

    world_size: int
    tp: int

    def __post_init__(self) -> None:
        if self.world_size % self.tp:
            raise UserError(
                f"parallel.tp = {self.tp} does not divide the world: world_size {self.world_size} = dp x tp {self.tp}",
                rule="world_size (nodes x processes per node) is a multiple of parallel.tp",
                fix=f"start a multiple of {self.tp} processes (--nproc, --nodes), or set parallel.tp to a divisor of "
                f"{self.world_size}",
            )

    @property
    def dp(self) -> int:
        return self.world_size // self.tp

    def dp_rank(self, rank: int) -> int:
        return rank // self.tp

    def tp_rank(self, rank: int) -> int:
        return rank % self.tp


class Mesh:
    """The process groups of one rank. Its methods are those that DeepSpeed calls on an `mpu` (Megatron's name for it).

    With one process there are no groups, and no collective is ever called.
    """

    def __init__(self, dims: ParallelDims, rank: int, timeout_seconds: int = 600) -> None:
        """`timeout_seconds` of a collective: new groups do not take it over from the group of everyone."""
        timeout = timedelta(seconds=timeout_seconds)
        self.dims = dims
        self.dp_size, self.tp_size = dims.dp, dims.tp
        self.dp_rank, self.tp_rank = dims.dp_rank(rank), dims.tp_rank(rank)
        grid = torch.arange(dims.world_size).view(dims.dp, dims.tp)
        self.tp_ranks = grid[self.dp_rank].tolist()
        self.dp_ranks = grid[:, self.tp_rank].tolist()
        self.tp_group = _own_group(grid.tolist(), rank, timeout) if self.distributed else None
        self.dp_group = _own_group(grid.T.tolist(), rank, timeout) if self.distributed else None

    @property
    def distributed(self) -> bool:
        return self.dims.world_size > 1

    def get_data_parallel_world_size(self) -> int:
        return self.dp_size

    def get_data_parallel_rank(self) -> int:
        return self.dp_rank

    def get_data_parallel_group(self) -> dist.ProcessGroup | None:
        return self.dp_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return list(self.dp_ranks)

    def get_model_parallel_world_size(self) -> int:
        return self.tp_size

    def get_model_parallel_rank(self) -> int:
        return self.tp_rank

    def get_model_parallel_group(self) -> dist.ProcessGroup | None:
        return self.tp_group

    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_pipeline_model_parallel_world_size(self) -> int:
        return 1

    def get_pipeline_model_parallel_rank(self) -> int:
        return 0


def _own_group(groups: list[list[int]], rank: int, timeout: timedelta) -> dist.ProcessGroup | None:
    """The group with `rank`; every rank takes part in making each, but for those of everyone and of one.

    A thousand data parallel ranks make no thousand groups together.
    """
    own: dist.ProcessGroup | None = dist.group.WORLD
    if len(groups) > 1 and len(groups[0]) > 1:
        made = [dist.new_group(ranks, timeout=timeout) for ranks in groups]
        own = next(group for group, ranks in zip(made, groups, strict=True) if rank in ranks)
    elif len(groups) > 1:
        own = dist.new_group([rank], timeout=timeout, use_local_synchronization=True)
    return own
