"""Initial weights as a function of (seed, parameter name) alone: the same at any tensor parallel or ZeRO degree."""

import hashlib
import math

import torch
from torch import Tensor

from dgpt.config import ModelConfig
from dgpt.model.gpt import GPT


def initial_weight(name: str, shape: torch.Size, config: ModelConfig, seed: int, device: torch.device) -> Tensor:
    """The whole parameter `name` of `shape`, in fp32: ones for norms, zeros for biases, else normal.

    The projections that write to the residual stream have a standard deviation smaller by sqrt(2 * n_layer), so that
    the stream's variance does not grow with depth (GPT-2). Random numbers differ between CPU and GPU generators.
    """
    if name.endswith("bias"):
        return torch.zeros(shape, device=device)
    if len(shape) == 1:
        return torch.ones(shape, device=device)
    residual = name.endswith(("attn.proj.weight", "mlp.down.weight"))
    std = config.init_std / math.sqrt(2 * config.n_layer) if residual else config.init_std
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape, device=device).normal_(0.0, std, generator=generator)


def build_model(config: ModelConfig, seed: int, device: torch.device) -> GPT:
    """A whole, initialised GPT in fp32 on `device`."""
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device=device)
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, config, seed, device))
    return model
