"""What the ranks of the pool run. Plain functions of (runtime, ...), named by the tests."""

import torch

from dgpt.config import RunConfig, load_config
from dgpt.parallel.parity import Curve, run_curve
from dgpt.runtime import Runtime

TINY = (
    "model.n_layer=2", "model.n_head=4", "model.n_embd=32", "model.seq_len=16", "model.vocab_size=96",
    "model.vocab_multiple=32", "model.init_std=0.1", "training.global_batch_size=8", "training.micro_batch_size=2",
    "training.loss_chunk_tokens=24", "training.steps=5", "schedule.warmup_steps=0", "optimizer.lr=1e-3",
)  # fmt: skip


def tiny(*overrides: str) -> RunConfig:
    """A model small enough for seconds, with gradient accumulation and several loss chunks."""
    return load_config(None, [*TINY, *overrides])


def curve(runtime: Runtime, config: RunConfig, dtype: torch.dtype = torch.float32, steps: int = 5) -> Curve:
    return run_curve(config, runtime, steps, dtype)
