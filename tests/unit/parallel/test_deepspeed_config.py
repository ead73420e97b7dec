"""The DeepSpeed dict is a pure function of the run."""

from typing import Any

import pytest
import torch

from dgpt.config import batch_plan, load_config
from dgpt.errors import UserError
from dgpt.parallel.deepspeed_config import NEVER, deepspeed_config


def made(*overrides: str, dtype: torch.dtype = torch.bfloat16, parameters: int = 10_000_000) -> dict[str, Any]:
    config = load_config(None, overrides)
    return deepspeed_config(config, batch_plan(config, 2), dtype, parameters)


def test_zero_1_golden() -> None:
    assert made() == {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "communication_data_type": None,
        "zero_optimization": {
            "stage": 1,
            "reduce_bucket_size": 16_777_216,
            "allgather_bucket_size": 16_777_216,
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            "reduce_scatter": torch.cuda.is_available(),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": NEVER,
    }


def test_zero_3_golden() -> None:
    zero = made("parallel.zero_stage=3", "parallel.zero_hpz_partition_size=8", "parallel.zero_quantized_weights=true",
                "parallel.bucket_tokens=1000")["zero_optimization"]  # fmt: skip
    assert zero | {"overlap_comm": False} == {
        "stage": 3,
        "reduce_bucket_size": 1000,
        "allgather_bucket_size": 1000,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "sub_group_size": 10_000_000,
        "stage3_prefetch_bucket_size": 1000,
        "stage3_param_persistence_threshold": 10_000,
        "stage3_max_live_parameters": 2000,
        "stage3_max_reuse_distance": 2000,
        "zero_hpz_partition_size": 8,
        "zero_quantized_weights": True,
        "zero_quantized_gradients": False,
    }


def test_no_clipping_still_asks_for_the_norm() -> None:
    assert made("optimizer.grad_clip=0")["gradient_clipping"] == float(NEVER)


def test_zero_0_in_fp32_is_clipped_by_the_engine() -> None:
    assert made("parallel.zero_stage=0", dtype=torch.float32)["gradient_clipping"] == 0.0


def test_extra_keys_are_merged_and_collisions_refused() -> None:
    assert (
        made("parallel.zero_extra={round_robin_gradients=true}")["zero_optimization"]["round_robin_gradients"] is True
    )
    with pytest.raises(UserError, match="zero_extra sets stage"):
        made("parallel.zero_extra={stage=2}")


def test_deepspeed_knows_every_key() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {name for key, field in DeepSpeedZeroConfig.model_fields.items() for name in (key, field.alias)}
    for overrides in ((), ("parallel.zero_stage=3",), ("parallel.offload_optimizer=true",)):
        assert made(*overrides)["zero_optimization"].keys() <= known
