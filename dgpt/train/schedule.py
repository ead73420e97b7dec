"""Learning rate schedules: pure functions of the step."""

import math

from dgpt.config import OptimizerConfig, ScheduleConfig


def lr_at(step: int, optimizer: OptimizerConfig, schedule: ScheduleConfig, total_steps: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0, of a run of `total_steps`.

    Step s is update number n = s + 1, and every shape is drawn over n: the warmup is lr * n / warmup_steps, so that the
    first update already moves and update number warmup_steps has the full lr; cosine and wsd reach min_lr exactly at
    the last update, n = total_steps, and stay there.
    """
    lr, low, warmup = optimizer.lr, schedule.min_lr, schedule.warmup_steps
    n = min(step + 1, total_steps)
    if n <= warmup:
        return lr * n / warmup
    if schedule.kind == "constant":
        return lr
    if schedule.kind == "cosine":
        return low + (lr - low) * 0.5 * (1 + math.cos(math.pi * (n - warmup) / (total_steps - warmup)))
    decay = min(wsd_decay_steps(schedule, total_steps), total_steps - warmup)
    return lr + (low - lr) * max(0, n - (total_steps - decay)) / decay


def wsd_decay_steps(schedule: ScheduleConfig, total_steps: int) -> int:
    """Steps of the final linear decay of wsd (arXiv:2404.06395): as set, or a tenth of the run."""
    return schedule.decay_steps or max(1, total_steps // 10)
