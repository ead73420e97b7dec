"""AdamW in two groups: matrices and embeddings decay, norms and biases do not (arXiv:1711.05101)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from dgpt.config import OptimizerConfig


def make_optimizer(parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig) -> torch.optim.AdamW:
    """One fused AdamW over named parameters. A ZeRO 3 parameter shows an empty shape, hence the choice by name."""
    groups: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name, parameter in parameters:
        groups[decays(name)].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": config.weight_decay}, {"params": groups[False], "weight_decay": 0.0}],
        lr=config.lr, betas=config.betas, eps=config.eps, fused=True,
    )  # fmt: skip


def decays(name: str) -> bool:
    """Whether weight decay applies to the parameter `name`."""
    return not (name.endswith("bias") or "norm" in name)
