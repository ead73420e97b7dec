"""What Slurm says to the batch script of a job: the only reader of environment variables here."""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A running job, seen from its batch script."""

    id: str
    chain: str  # the same for all jobs that follow one another, as those of an array do
    restart: int  # how often Slurm has requeued it
    nodelist: str  # n[0-3]
    node: str  # of the batch script; the first of the job
    cpus_per_task: int
    gpus_per_node: int  # 0: none asked for
    processes_per_node: int  # 0: launch/torchrun.sh counts the GPUs
    container: str  # image that the ranks run in, or empty


def this_job() -> Job | None:
    """None outside of a batch script."""
    of = os.environ.get
    job, nodelist = of("SLURM_JOB_ID"), of("SLURM_JOB_NODELIST")
    if not job or not nodelist:
        return None
    gpus = int(of("SLURM_GPUS_ON_NODE", "0"))
    return Job(
        id=job,
        chain=of("DGPT_CHAIN") or of("SLURM_ARRAY_JOB_ID") or job,
        restart=int(of("SLURM_RESTART_COUNT", "0")),
        nodelist=nodelist,
        node=of("SLURMD_NODENAME", ""),
        cpus_per_task=int(of("SLURM_CPUS_PER_TASK") or of("SLURM_CPUS_ON_NODE", "1")),
        gpus_per_node=gpus,
        processes_per_node=int(of("NPROC_PER_NODE", "0")) or gpus,
        container=of("DGPT_CONTAINER", ""),
    )


def with_variables(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process, changed by `extra`; what the user has set of OMP_NUM_THREADS stays."""
    kept = {name: value for name, value in os.environ.items() if name == "OMP_NUM_THREADS"}
    return {**os.environ, **extra, **kept, "PYTHON": sys.executable}


def given_addresses() -> list[str]:
    """Addresses of the nodes that the user names because Slurm's cannot be used; normally none."""
    return os.environ.get("DGPT_NODE_ADDRESSES", "").split()


def die_with_parent() -> None:
    """On Linux, end with Slurm's step daemon: a batch script that has lost it is no job of anybody's."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # <sys/prctl.h>
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
