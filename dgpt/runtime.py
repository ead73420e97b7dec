"""This process among the others: rank, device, process group. The only reader of environment variables."""

import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psutil  # type: ignore[import-untyped]
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from dgpt.errors import UserError
from dgpt.watch.runtime import AGENT_PID, built_for_gpus, launched

T = TypeVar("T")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <sys/prctl.h>
LEAVING_SECONDS = 5.0


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

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def on_main(self, action: Callable[[], T]) -> T:
        """What `action` returns on rank 0, on every rank; a UserError there is raised on every rank."""
        value: T | None = None
        refusal: UserError | None = None
        if self.is_main:
            try:
                value = action()
            except UserError as error:
                refusal = error
        value, refusal = self.broadcast((value, refusal))
        if refusal:
            raise refusal
        return value  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values


def rank() -> int:
    """Global rank of this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def job_id() -> str:
    """Of the scheduler; empty without one."""
    return os.environ.get("SLURM_JOB_ID", "")


def requeues() -> int:
    """How often the scheduler has started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def report_file() -> Path | None:
    """Where a worker leaves its report (dgpt.outcome); None unless dgpt.agent started it and reads it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(path) if path and AGENT_PID in os.environ else None


def node() -> str:
    """Name of this node: Slurm's, as several may share a host name in a test cluster, or else the host's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def verdict_file() -> Path | None:
    """Where the agent of this node says how its workers ended (slurm/node.sh); None if nobody waits for it."""
    path = os.environ.get("DGPT_VERDICT")
    return Path(path) if path else None


def prepare_agent() -> None:
    """Tie the workers that this process will start to it, and tell gloo the interface to the other nodes.

    gloo would take the interface that the host name resolves to, which is the loopback on many systems.
    """
    if not built_for_gpus():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # who asks for GPUs before a fork leaves them usable
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what a killed worker has started comes to this process, which ends it
    if "SLURM_STEP_ID" in os.environ:
        kill_with_parent()  # Slurm's step daemon; nobody else would end an agent that has lost it
    for name, addresses in psutil.net_if_addrs().items():
        if os.environ.get("NODE_ADDR") in {entry.address for entry in addresses}:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def identify() -> Runtime:
    """This process and its device; no word with the others yet, so a user's mistake can still end all of them alike."""
    local_rank, world_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        keep_freed_memory()
    if world_size > 1 or launched():
        die_with_parent()
    return Runtime(rank(), local_rank, world_size, device)


def join(runtime: Runtime, timeout_seconds: int) -> None:
    """With several processes, join the process group (nccl on GPUs, gloo on CPUs)."""
    if runtime.world_size > 1:
        cuda = runtime.device.type == "cuda"
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            timeout=timedelta(seconds=timeout_seconds),
            device_id=runtime.device if cuda else None,
        )


def start(timeout_seconds: int) -> Runtime:
    """`identify` and `join`."""
    runtime = identify()
    join(runtime, timeout_seconds)
    return runtime


def set_timeout(seconds: float) -> None:
    """How long collectives may take from now on, in every group, also those that DeepSpeed has made.

    torch has no public call for it; this one is in 2.11 to 2.13, for gloo and nccl.
    """
    if dist.is_initialized():
        for group in list(c10d._world.pg_map):
            c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def finish() -> None:
    """Leave the process group; in some seconds, as it may wait for ranks that are gone."""
    if dist.is_initialized():
        leaving = threading.Thread(target=dist.destroy_process_group, name="leaving", daemon=True)
        leaving.start()
        leaving.join(LEAVING_SECONDS)


def end_within(seconds: float) -> None:
    """Whatever hangs from now on, a worker ends with code 1, its stacks in its log. Python need not take part in it."""
    if launched():
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its launcher is gone, so that no worker outlives a lost torchrun."""
    kill_with_parent()
    agent = os.environ.get(AGENT_PID)
    if agent and int(agent) != os.getppid():
        os._exit(1)  # the launcher was gone before the kernel was asked


def kill_with_parent() -> None:
    """On Linux, when the process that started this one ends from now on."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory: a training step asks for the same blocks again and again.

    Each block that goes back to the kernel comes again by page faults, 6 to 10% of the time of a bf16 step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # glibc
        trim_threshold, mmap_threshold = -1, -3  # <malloc.h>
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)  # 32 MiB, the largest that it takes


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
