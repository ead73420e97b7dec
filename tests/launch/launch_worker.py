"""A tiny stand-in for the trainer: every rank all-reduces in a loop until it is told to end. Not a test itself."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from dgpt import outcome, runtime
from dgpt.errors import UserError
from dgpt.train.stop import Stopper
from dgpt.watch.heartbeat import Heartbeat, Identity, Patience
from dgpt.watch.runtime import heartbeat_folder

HANG_SECONDS = 3


def body(mode: str, folder: Path) -> int:
    if mode == "mistake":
        time.sleep(0.3 * (runtime.rank() == 0))  # the other rank fails first, and its end must not hide the message
        raise UserError("size = 3 is odd", rule="size is even", fix="set size to 2 or 4")
    process = runtime.start(timeout_seconds=60)
    heartbeat = watched(process, folder)
    with Stopper(folder, is_main=process.is_main, world_size=process.world_size, device=process.device) as stopper:
        for step in range(1000):
            heartbeat.enter(step, "data")
            act(mode, folder, step, process.rank)
            heartbeat.enter(step, "step")
            total = torch.ones(1)
            dist.all_reduce(total)
            (folder / f"rank_{process.rank}").write_text(f"{os.getpid()} {int(total)}")
            if stopper.agreed():
                (folder / f"saved_{process.rank}").write_text(f"{step} {stopper.reason}")
                time.sleep(0.3 * process.is_main)  # a save that takes longer than that of the others
                break
            if mode == "finish" and step == 2:
                break
            time.sleep(0.02)
    heartbeat.end()
    runtime.finish()
    return outcome.STOPPED if stopper.reason else outcome.DONE


def watched(process: runtime.Runtime, folder: Path) -> Heartbeat:
    patience = Patience(HANG_SECONDS, first_seconds=60)
    identity = Identity(process.rank, os.getpid(), process.world_size, process.broadcast(str(time.time())), str(folder),
                        HANG_SECONDS)  # fmt: skip
    heartbeat = Heartbeat(heartbeat_folder(), identity, patience)
    patience.first_step(0)
    return heartbeat


def act(mode: str, folder: Path, step: int, rank: int) -> None:
    if mode == "crash" and step == 2 and rank == 1:
        raise ZeroDivisionError("the worker of rank 1 divided by zero")
    if mode == "killed once" and rank == 1 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "killed once" and step == 2:
        sys.exit(0)


if __name__ == "__main__":
    sys.exit(outcome.guard(lambda: body(sys.argv[1], Path(sys.argv[2]))))
