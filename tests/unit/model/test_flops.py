"""Counts against published sizes, against torch's own FLOP counter, and the table of devices."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dgpt.config import ModelConfig
from dgpt.model.flops import PEAK_TFLOPS, PeakKind, flops_per_token, parameter_count, peak_flops
from dgpt.model.init import build_model

GPT2_124M = ModelConfig(vocab_size=50257, vocab_multiple=1)


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (GPT2_124M, 124_439_808),  # openai-community/gpt2
        (ModelConfig(n_layer=48, n_head=25, n_embd=1600, vocab_size=50257, vocab_multiple=1), 1_557_611_200),
        (ModelConfig(shape="llama", n_layer=32, n_head=32, n_embd=4096, n_ff=11008, vocab_size=32000), 6_738_415_616),
        (ModelConfig(shape="llama", n_layer=32, n_head=32, n_kv_head=8, n_embd=4096, n_ff=14336, vocab_size=128256),
         8_030_261_248),
    ],
    ids=["gpt2", "gpt2-xl", "llama-7b", "llama-3-8b"],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(config: ModelConfig, published: int) -> None:
    assert parameter_count(config) == published


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(n_layer=2, n_head=4, n_embd=32, seq_len=16, vocab_size=50),
        ModelConfig(n_layer=2, n_head=4, n_embd=32, seq_len=16, vocab_size=50, tie_embeddings=False),
        ModelConfig(shape="llama", n_layer=3, n_head=8, n_kv_head=2, n_embd=64, n_ff=96, seq_len=24, vocab_size=90),
    ],
    ids=["tied", "untied", "llama-gqa"],
)
def test_flops_are_those_that_torch_counts(config: ModelConfig) -> None:
    model = build_model(config, seed=0, device=torch.device("cpu"))
    tokens = torch.zeros(2, config.seq_len, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, tokens).backward()
    assert counter.get_total_flops() == tokens.numel() * flops_per_token(config)


def test_gpt2_is_close_to_the_formula_of_nanogpt() -> None:
    """nanoGPT's N is all parameters but the position embedding, biases and norms included."""
    n = parameter_count(GPT2_124M) - 1024 * 768
    assert flops_per_token(GPT2_124M) == pytest.approx(6 * n + 12 * 12 * 768 * 1024, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "kind", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100-PCIE-40GB", "tf32", 156.0),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H100 NVL", "fp32", 60.0),
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA GH200 480GB", "bf16", 989.4),
        ("NVIDIA B200", "bf16", 2250.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA A10", "bf16", 125.0),
        ("NVIDIA A10G", "bf16", 70.0),
        ("Tesla V100-SXM2-16GB", "fp32", 15.7),
        ("Tesla V100-PCIE-16GB", "fp32", 14.0),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("AMD Instinct MI300X", "bf16", 1307.4),
    ],
)
def test_devices_are_found_by_the_name_the_driver_gives(name: str, kind: PeakKind, tflops: float) -> None:
    assert peak_flops(name, kind) == tflops * 1e12


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Tesla V100-SXM2-16GB", "bf16"), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16"), ("cpu", "fp32"), ("", "bf16"),
     ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16")],
)  # fmt: skip
def test_what_is_not_known_has_no_peak(name: str, kind: PeakKind) -> None:
    assert peak_flops(name, kind) is None


def test_tensor_cores_are_never_slower_than_what_is_wider() -> None:
    for name, (bf16, tf32, fp32) in PEAK_TFLOPS.items():
        assert fp32 > 0, name
        assert bf16 == 0 or bf16 >= max(tf32, fp32), name
