"""Activation checkpointing: recompute in backward what forward does not keep (arXiv:1604.06174).

Applied to `forward` of modules in place, so that parameter names stay. The reentrant form of torch.utils.checkpoint is
used on purpose: it is the one under which ZeRO 3 gathers weights again for the recomputation, and whose saved inputs
pass through `save_on_cpu`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from dgpt.config import ActivationCheckpointingConfig
from dgpt.model.gpt import GPT


def apply_activation_checkpointing(model: GPT, config: ActivationCheckpointingConfig) -> None:
    """full: every block; selective: every k-th block, or with selective_every = 0 the attention of every block."""
    preserve_rng = model.config.dropout > 0
    for module in _chosen(model, config):
        module.forward = _recomputed(module.forward, preserve_rng, config.offload)


def _chosen(model: GPT, config: ActivationCheckpointingConfig) -> list[nn.Module]:
    if config.policy == "none":
        return []
    if config.policy == "selective" and config.selective_every == 0:
        return [block.get_submodule("attn.attend") for block in model.blocks]
    every = config.selective_every if config.policy == "selective" else 1
    return list(model.blocks)[::every]


def _recomputed(forward: Callable[..., Tensor], preserve_rng: bool, offload: bool) -> Callable[..., Tensor]:
    def run(*args: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*args)
        with save_on_cpu(pin_memory=torch.cuda.is_available()) if offload else nullcontext():
            result: Tensor = checkpoint(forward, *args, use_reentrant=True, preserve_rng_state=preserve_rng)
        return result

    return run
