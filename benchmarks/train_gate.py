"""One rank of an arm in a process of its own: it waits at a gate before each round, so that the arms take turns."""

import contextlib
import os
import sys
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.train_spec import SIZES, Arm, run_config


class Ended(Exception):  # noqa: N818
    """The benchmark wants no more rounds."""


@dataclass(frozen=True)
class Round:
    """What one rank did in one round."""

    seconds: float
    cpu_seconds: float  # of this process, which other users of the machine do not slow down
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Summary:
    """What one rank was, at its end."""

    peak_gib: float
    mfu_per_token: float | None  # percent x seconds; None where the peak of the device is not known


@dataclass
class Gate:
    """Called before each step; every `steps` steps it reports the round and waits for the next one."""

    pipe: Connection
    steps: int
    cuda: bool
    losses: list[float] = field(default_factory=list)
    started: tuple[float, float] | None = None

    def __call__(self, step: int) -> None:
        if step % self.steps:
            return
        if self.cuda:
            import torch

            torch.cuda.synchronize()
        if self.started is not None:
            wall, cpu = self.started
            self.pipe.send(Round(time.perf_counter() - wall, time.process_time() - cpu, tuple(self.losses)))
            self.losses.clear()
        if self.pipe.recv() != "go":
            raise Ended
        self.started = time.perf_counter(), time.process_time()

    def saw(self, loss: float) -> None:
        """An arm has read its loss."""
        self.losses.append(loss)


@dataclass(frozen=True)
class Job:
    """A rank to start."""

    arm: Arm
    rank: int
    port: int
    size: str
    rounds: int
    steps: int
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)


def serve(job: Job, pipe: Connection) -> None:
    """Body of the process: train until the gate ends it, then send a Summary, or the text of an error."""
    log = os.open(job.folder / f"{job.arm.name.replace(' ', '_')}_{job.rank}.log", os.O_CREAT | os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    os.environ.update(
        job.environment, RANK=str(job.rank), LOCAL_RANK=str(job.rank), WORLD_SIZE=str(job.arm.processes),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job.port), GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
    )  # fmt: skip
    try:
        pipe.send(_train(job, pipe))
    except Exception:
        pipe.send(traceback.format_exc())
    os._exit(0)  # leaves out the ends of libraries that were interrupted


def _train(job: Job, pipe: Connection) -> Summary:
    import torch

    from benchmarks import train_arms
    from dgpt.model.flops import flops_per_token, peak_flops
    from dgpt.runtime import die_with_parent
    from dgpt.train.metrics import peak_memory_gib

    torch.set_num_threads(1)
    die_with_parent()
    runtime = train_arms.join(job.arm)
    run_dir = job.folder / job.arm.name.replace(" ", "_")
    config = run_config(job.arm, SIZES[job.size], job.rounds, job.steps, str(run_dir))
    gate = Gate(pipe, job.steps, cuda=runtime.device.type == "cuda")
    with contextlib.suppress(Ended):
        train_arms.run(job.arm, config, runtime, job.folder / "tokens", gate)
    name = torch.cuda.get_device_name() if runtime.device.type == "cuda" else "cpu"
    peak = peak_flops(name, job.arm.dtype)  # type: ignore[arg-type]
    return Summary(peak_memory_gib(runtime.device), 100 * flops_per_token(config.model) / peak if peak else None)
