"""This process among the others: rank, device, process group. The only reader of environment variables."""

import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Runtime:
    """What torchrun said of this process; a single process without torchrun is rank 0 of 1."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def under_torchrun() -> bool:
    """Whether a launcher has already started this process as a rank."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def start(timeout_seconds: int) -> Runtime:
    """Take this process's device and, with several processes, join the process group (nccl on GPUs, gloo on CPUs)."""
    rank, local_rank, world_size = (int(os.environ.get(name, default)) for name, default in
                                    (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")))  # fmt: skip
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if world_size > 1:
        die_with_parent()
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout_seconds),
            device_id=device if device.type == "cuda" else None,
        )
    return Runtime(rank, local_rank, world_size, device)


def finish() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its launcher is gone, so that no worker outlives a lost torchrun."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # <sys/prctl.h>
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 matrices in hardware (Ampere and later; AVX512_BF16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    cpu = torch.backends.cpu.get_cpu_capability()
    return (
        cpu.startswith("AVX512")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and _cpu_flag("avx512_bf16", "amx_bf16")
    )


def _cpu_flag(*flags: str) -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return any(flag in line.split() for flag in flags)
