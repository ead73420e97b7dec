"""Arithmetic of a model: parameters, floating-point operations per token, and the peak of the device it runs on."""

import re
from typing import Literal

import torch

from dgpt.config import ModelConfig
from dgpt.model.gpt import GPT

PeakKind = Literal["bf16", "tf32", "fp32"]

# Name as the driver gives it (all these words in it) -> dense peak in TFLOP/s: bf16, TF32 and fp32 without tensor
# cores; 0 where the device has none. Data sheets print twice the dense figure where they count 2:4 sparsity.
# The vendors' data sheets: nvidia.com/en-us/data-center/{v100,t4,a100,a10,a40,l4,l40s,h100,h200,hgx,gb200-nvl72}, the
# architecture white papers for the GeForce cards (fp32 accumulation), amd.com/en/products/accelerators/instinct.
PEAK_TFLOPS: dict[str, tuple[float, float, float]] = {
    "V100": (0.0, 0.0, 15.7),  # SXM2
    "V100 PCIE": (0.0, 0.0, 14.0),
    "T4": (0.0, 0.0, 8.1),
    "A100": (312.0, 156.0, 19.5),  # SXM and PCIe alike
    "A800": (312.0, 156.0, 19.5),
    "A10": (125.0, 62.5, 31.2),
    "A10G": (70.0, 35.0, 31.2),
    "A40": (149.7, 74.8, 37.4),
    "L4": (121.0, 60.0, 30.3),
    "L40": (181.0, 90.5, 90.5),
    "L40S": (362.0, 183.0, 91.6),
    "RTX 3090": (71.0, 35.6, 35.6),
    "RTX 4090": (165.2, 82.6, 82.6),
    "H100": (989.4, 494.7, 66.9),  # SXM
    "H100 PCIE": (756.0, 378.0, 51.2),
    "H100 NVL": (835.0, 417.5, 60.0),
    "H800": (989.4, 494.7, 66.9),
    "H20": (148.0, 74.0, 44.0),
    "GH200": (989.4, 494.7, 66.9),
    "H200": (989.4, 494.7, 66.9),  # SXM
    "H200 NVL": (835.0, 417.5, 60.0),
    "B200": (2250.0, 1100.0, 75.0),  # HGX, 1,000 W
    "GB200": (2500.0, 1250.0, 80.0),
    "MI250X": (191.5, 0.0, 47.9),  # one of the two dies, which is what a process sees
    "MI300X": (1307.4, 653.7, 163.4),
}
KINDS: dict[PeakKind, int] = {"bf16": 0, "tf32": 1, "fp32": 2}
PARTIAL = {"mig", "laptop"}  # a slice, or another chip under the same name


def parameter_count(config: ModelConfig) -> int:
    """All parameters, the padded rows of the vocabulary included; a tied matrix counts once."""
    return sum(parameter.numel() for parameter in _on_meta(config).parameters())


def flops_per_token(config: ModelConfig) -> int:
    """Floating-point operations of the model for one token, forward and backward: 6 N + 12 L C T.

    The convention of PaLM (arXiv:2204.02311, appendix B) and nanoGPT. N counts the weights of matrix products: every
    linear layer, at its true width with grouped-query attention and SwiGLU, and the head. It leaves out tables that are
    only looked up (position embedding, token embedding unless tied), and norms and biases (under 0.1 percent).
    Attention is counted in full, though half of it lies behind the causal mask, at sequence length T = seq_len.
    Recomputation by activation checkpointing is not counted: this is the model's work, not the machine's.
    """
    model = _on_meta(config)
    tables = {"wte.weight", "wpe.weight"}
    weights = {name: p.numel() for name, p in model.named_parameters(remove_duplicate=False) if p.dim() == 2}
    products = sum(count for name, count in weights.items() if name not in tables)
    return 6 * products + 12 * config.n_layer * config.n_embd * config.seq_len


def peak_flops(device_name: str, kind: PeakKind) -> float | None:
    """Dense peak of a device in FLOP/s, or None where the device or its support for `kind` is not known.

    `device_name` is what torch.cuda.get_device_name gives; the row of PEAK_TFLOPS with the most words of it is taken.
    """
    words = set(re.split(r"[^a-z0-9]+", device_name.lower()))
    rows = [row for row in PEAK_TFLOPS if set(row.lower().split()) <= words]
    if not rows or words & PARTIAL:
        return None
    row = max(rows, key=lambda row: len(row.split()))
    return PEAK_TFLOPS[row][KINDS[kind]] * 1e12 or None


def _on_meta(config: ModelConfig) -> GPT:
    with torch.device("meta"):
        return GPT(config)
