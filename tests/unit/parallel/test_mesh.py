"""The rank grid."""

import pytest

from dgpt.errors import UserError
from dgpt.parallel.mesh import Mesh, ParallelDims


def test_tp_ranks_are_neighbours() -> None:
    dims = ParallelDims(world_size=8, tp=2)
    assert dims.dp == 4
    assert [(dims.dp_rank(r), dims.tp_rank(r)) for r in range(4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_one_process_needs_no_group() -> None:
    mesh = Mesh(ParallelDims(1, 1), rank=0)
    assert (mesh.dp_group, mesh.tp_group, mesh.distributed) == (None, None, False)


def test_indivisible_world_prints_every_degree() -> None:
    with pytest.raises(UserError, match=r"parallel.tp = 4 does not divide .* world_size 6 = dp x tp 4"):
        ParallelDims(world_size=6, tp=4)


def test_mesh_has_no_ulysses_method() -> None:
    """DeepSpeed turns its model parallel handling off for an mpu with this name."""
    assert not hasattr(Mesh, "initialize_sequence_parallel")
