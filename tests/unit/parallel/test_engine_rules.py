"""Combinations that DeepSpeed would compute wrongly are refused before anything is built."""

import math

import pytest
import torch

from dgpt.config import load_config
from dgpt.errors import UserError
from dgpt.parallel.engine import check_engine
from dgpt.parallel.mesh import ParallelDims
from dgpt.parallel.parity import Curve


@pytest.mark.parametrize(("overrides", "world_size"), [
    (["parallel.zero_hpz_partition_size=8", "parallel.zero_stage=1"], 8),
    (["parallel.zero_quantized_gradients=true", "parallel.zero_stage=3", "parallel.tp=2"], 8),
    (["parallel.offload_optimizer=true", "parallel.zero_stage=0"], 8),
    (["parallel.offload_optimizer=true"], 1),
    (["training.compile=true", "parallel.zero_stage=3"], 2),
    (["parallel.tp=2", "parallel.zero_stage=0"], 2),
    (["parallel.zero_hpz_partition_size=3", "parallel.zero_stage=3"], 8),
    (["parallel.zero_extra={stage=3}"], 1),
])  # fmt: skip
def test_refused(overrides: list[str], world_size: int) -> None:
    config = load_config(None, overrides)
    with pytest.raises(UserError, match="rule:"):
        check_engine(config, ParallelDims(world_size, config.parallel.tp), torch.bfloat16)


def test_zero_plus_plus_at_tp_1_is_allowed() -> None:
    config = load_config(None, ["parallel.zero_stage=3", "parallel.zero_hpz_partition_size=8"])
    check_engine(config, ParallelDims(16, 1), torch.bfloat16)


def test_a_cluster_s_file_starts_on_one_process() -> None:
    config = load_config(None, ["parallel.zero_stage=3", "parallel.zero_hpz_partition_size=8"])
    check_engine(config, ParallelDims(1, 1), torch.bfloat16)


@pytest.mark.parametrize(("extra", "problem"), [
    ("{stagee=3}", r"parallel.zero_extra.stagee = 3: extra inputs are not permitted"),
    ("{max_reduce_scatter_size_gib=1, round_robin_gradients=true}", "max_reduce_scatter_size_gib"),
    ("{round_robin_gradients='sometimes'}", "round_robin_gradients = 'sometimes': input should be a valid boolean"),
])  # fmt: skip
def test_extra_keys_that_deepspeed_does_not_take(extra: str, problem: str) -> None:
    config = load_config(None, [f"parallel.zero_extra={extra}"])
    with pytest.raises(UserError, match=problem):
        check_engine(config, ParallelDims(2, 1), torch.bfloat16)


def test_extra_keys_that_deepspeed_takes() -> None:
    config = load_config(None, ["parallel.zero_extra={round_robin_gradients=true}"])
    check_engine(config, ParallelDims(2, 1), torch.bfloat16)


def test_a_curve_that_is_not_finite_is_near_nothing() -> None:
    assert Curve([1.0, math.nan], [1.0, 1.0]).distance(Curve([1.0, 1.0], [1.0, 1.0])) == math.inf
