"""Batch arithmetic: global_batch_size = micro_batch_size * grad_accum_steps * dp_size."""

from dataclasses import dataclass

from dgpt.config.run import LoopConfig
from dgpt.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step divides over micro steps and data parallel ranks (all sizes in sequences)."""

    global_batch_size: int
    micro_batch_size: int
    grad_accum_steps: int
    dp_size: int


def batch_plan(config: LoopConfig, dp_size: int) -> BatchPlan:
    """Derive grad_accum_steps for `dp_size` data parallel ranks.

    Raises UserError with the arithmetic and the nearest global batches that divide.
    """
    t = config.training
    per_micro_step = t.micro_batch_size * dp_size
    if t.global_batch_size % per_micro_step:
        lower = t.global_batch_size // per_micro_step * per_micro_step
        nearest = " or ".join(str(n) for n in (lower, lower + per_micro_step) if n)
        raise UserError(
            f"training.global_batch_size = {t.global_batch_size} does not divide over the ranks: "
            f"micro_batch_size {t.micro_batch_size} x dp_size {dp_size} = {per_micro_step} sequences a micro step",
            rule="global_batch_size is a multiple of micro_batch_size x dp_size (dp_size = world size / tp)",
            fix=f"set training.global_batch_size to {nearest}, or change training.micro_batch_size",
        )
    return BatchPlan(t.global_batch_size, t.micro_batch_size, t.global_batch_size // per_micro_step, dp_size)
