"""The DeepSpeed configuration as a pure function of the run: batch, ZeRO, precision, clipping, and nothing else.

Optimizer and schedule are Python objects. DeepSpeed ignores misspelt top-level keys in silence, so nobody writes this
dict by hand.
"""

from typing import Any

import torch

from dgpt.config import BatchPlan, ParallelConfig, RunConfig
from dgpt.errors import UserError

NEVER = 2**31 - 1  # DeepSpeed prints and clips on these conditions; dgpt does its own printing


def deepspeed_config(config: RunConfig, plan: BatchPlan, dtype: torch.dtype, parameters: int) -> dict[str, Any]:
    """`parameters`: number of elements of this rank's TP part of the model, to which the buckets are fitted.

    Raises UserError if [parallel.zero_extra] repeats a key that is derived here.
    """
    return {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.grad_accum_steps,
        "gradient_clipping": _clipping(config, dtype),
        "bf16": {"enabled": dtype == torch.bfloat16},
        "communication_data_type": {"auto": None, "fp32": "fp32", "bf16": "bfp16"}[config.parallel.reduce_dtype],
        "zero_optimization": zero_config(config.parallel, parameters, plan.dp_size),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": NEVER,
    }


def _clipping(config: RunConfig, dtype: torch.dtype) -> float:
    """0 where the engine clips itself: DeepSpeed keeps no norm of ZeRO 0 in fp32. grad_clip = 0 never clips."""
    if config.parallel.zero_stage == 0 and dtype == torch.float32:
        return 0.0
    return config.optimizer.grad_clip or float(NEVER)


def zero_config(parallel: ParallelConfig, parameters: int, dp_size: int) -> dict[str, Any]:
    """The part on ZeRO. Raises as `deepspeed_config`."""
    bucket = parallel.bucket_tokens or min(max(parameters // 4, 2**24), 2**28)
    zero: dict[str, Any] = {
        "stage": parallel.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "overlap_comm": torch.cuda.is_available(),
        "contiguous_gradients": True,
    }
    if parallel.zero_stage < 3:
        # With it DeepSpeed calls all-reduce as well, but on a copy of the bucket: docs/decisions/speed_on_cpu.md
        zero["reduce_scatter"] = torch.cuda.is_available()
    if parallel.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if parallel.zero_stage == 3:
        bucket = parallel.bucket_tokens or min(max(parameters // 32, 2**23), 2**28)
        zero |= {
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "sub_group_size": min(max(parameters // dp_size // 8, 10**7), 10**9),  # fp32 gradients held at once
            "stage3_prefetch_bucket_size": bucket,
            "stage3_param_persistence_threshold": min(10**5, max(parameters // 1000, 1)),
            "stage3_max_live_parameters": 2 * bucket,
            "stage3_max_reuse_distance": 2 * bucket,
            "zero_hpz_partition_size": parallel.zero_hpz_partition_size,
            "zero_quantized_weights": parallel.zero_quantized_weights,
            "zero_quantized_gradients": parallel.zero_quantized_gradients,
        }
    repeated = sorted(zero.keys() & parallel.zero_extra.keys())
    if repeated:
        raise UserError(
            f"parallel.zero_extra sets {', '.join(repeated)}",
            rule="zero_extra holds only keys that dgpt does not derive itself",
            fix="remove them there and use the settings of [parallel]",
        )
    return zero | parallel.zero_extra
