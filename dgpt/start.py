"""From the checks to the end of a run: the ranks meet, rank 0 takes the run folder, and it runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch

from dgpt import runtime as processes
from dgpt.checkpoint.files import FOLDER as CHECKPOINTS
from dgpt.checkpoint.files import clean
from dgpt.config import LoopConfig
from dgpt.lease import Lease
from dgpt.outcome import DONE
from dgpt.resume import newest_step
from dgpt.run import Run
from dgpt.runtime import Runtime
from dgpt.setup import Setup, check_alike, check_space


def start(setup: Setup, runtime: Runtime, kind: type[Run]) -> int:
    """Join the other ranks and take the run to its end; returns the exit code: done, or stopped after a save.

    Raises UserError on all ranks if the run folder cannot be had, and TrainingError when a loss is not finite.
    """
    torch.set_float32_matmul_precision(setup.config.precision.float32_matmul)
    processes.join(runtime, setup.config.parallel.first_step_timeout_seconds)
    check_alike(setup, runtime)
    step = newest_step(setup, runtime)
    if reason := runtime.on_main(partial(kind.finished_before, setup, step)):
        if runtime.is_main:
            print(f"finished before: {reason}", flush=True)
        code = DONE
    else:
        with _lease(setup.config, kind.trained_parameters(setup), runtime) as lease:
            code = kind(setup, runtime, lease).run()
    processes.finish()  # not after an error: leaving the group may wait for ranks that are gone
    return code


@contextmanager
def _lease(config: LoopConfig, trained: int, runtime: Runtime) -> Iterator[Lease | None]:
    """The run folder, held by rank 0 for all. Raises UserError on every rank if that is not possible."""
    with ExitStack() as stack:
        leases: list[Lease] = []

        def take() -> None:
            stale = config.resume.stale_lock_seconds
            lease = Lease.take(config.run_dir, processes.job_id(), requeues=processes.requeues(), stale_seconds=stale)
            leases.append(stack.enter_context(lease))
            for name in clean(Path(config.run_dir) / CHECKPOINTS):
                print(f"the save of {name} by an earlier start did not end: what it left is cleaned up", flush=True)
            check_space(config, trained)

        runtime.on_main(take)
        yield leases[0] if leases else None
