"""No rank ever holds the whole model: peak memory of each rank at start and in training, against its own share.

    python -m benchmarks.memory                      # 355M parameters, ZeRO 3 over 4 processes
    python -m benchmarks.memory --tp 2               # ZeRO 3 x TP 2
    python -m benchmarks.memory --zero 1             # for comparison: whole weights on every rank

A rank's share is its part of weights and gradients (compute type), fp32 weights and both moments (4 bytes each). The
bar is BAR x the share plus a constant: FACTOR copies of the largest parameter in fp32 (a parameter is whole while it is
made or used, and so is its gradient, which the head sums in fp32). Buckets and activations count against the bar. The
memory of the process before anything is built (interpreter, torch, deepspeed) is taken off. On a CPU glibc is told to
give freed memory back, or its free lists would be counted as held.
"""

import argparse
import ctypes
import sys
from pathlib import Path
from typing import Any

import torch

from dgpt import launch
from dgpt import runtime as processes
from dgpt.config import RunConfig, batch_plan, load_config
from dgpt.model.flops import parameter_count
from dgpt.parallel.engine import build_engine
from dgpt.parallel.mesh import Mesh, ParallelDims
from dgpt.parallel.parity import random_step

BAR, FACTOR, GIB = 1.3, 3, 2**30
RUN = Path(__file__).parents[1] / "configs" / "pretrain" / "gpt2_350m.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--zero", type=int, default=3)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    options = parser.parse_args()
    if launch.needs_torchrun(options.processes):
        launch.launch(["-m", "benchmarks.memory", *sys.argv[1:]], options.processes)
    measure(options)


def measure(options: argparse.Namespace) -> None:
    runtime = processes.start(600)
    give_freed_memory_back()
    import deepspeed.runtime.zero.stage3  # noqa: F401  its memory belongs to the constant

    config = the_run(options.zero, options.tp, runtime.world_size // options.tp)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.dtype]
    share = parameter_count(config.model) * (2 * dtype.itemsize + 12) / runtime.world_size
    mesh = Mesh(ParallelDims(runtime.world_size, options.tp), runtime.rank)
    before = reset_peak(runtime.device)
    engine: Any = build_engine(config, batch_plan(config, mesh.dp_size), mesh, runtime.device, dtype)
    at_start = peak(runtime.device) - before
    for step in range(3):
        random_step(engine, config, mesh, runtime.device, step)
    in_training = peak(runtime.device) - before
    bar = BAR * share + FACTOR * 4 * max(shape.numel() for shape in engine.shapes.values())
    for rank in range(runtime.world_size):
        torch.distributed.barrier()
        if rank == runtime.rank:
            verdict = "within" if max(at_start, in_training) <= bar else "OVER"
            print(f"rank {rank}: share {share / GIB:.2f} GiB | peak at start {at_start / GIB:.2f} GiB | in training "
                  f"{in_training / GIB:.2f} GiB = {in_training / share:.2f} x share | {verdict} the bar of "
                  f"{bar / GIB:.2f} GiB", flush=True)  # fmt: skip
    processes.finish()


def the_run(zero_stage: int, tp: int, dp: int) -> RunConfig:
    """The 350M model with short sequences: activations are not what is measured."""
    return load_config(RUN, [
        f"parallel.zero_stage={zero_stage}", f"parallel.tp={tp}", "model.seq_len=128", "model.vocab_size=50257",
        "training.micro_batch_size=1", f"training.global_batch_size={dp}", "training.loss_chunk_tokens=64",
        "activation_checkpointing.policy=full", "training.compile=false", "schedule.warmup_steps=0",
    ])  # fmt: skip


def give_freed_memory_back() -> None:
    """The opposite of what a run wants (runtime.keep_freed_memory): count what is held, not what was."""
    for setting, value in ((-1, 2**20), (-3, 2**20), (-8, 1)):  # <malloc.h>: trim and mmap threshold, arenas
        ctypes.CDLL(None).mallopt(setting, value)


def reset_peak(device: torch.device) -> int:
    """Bytes held now; the peak starts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets VmHWM
    return status("VmRSS")


def peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status("VmHWM")


def status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    main()
