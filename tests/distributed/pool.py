"""A warm pool of gloo processes, forked from a server that has imported torch and deepspeed for all distributed tests.

`pool.run(function, world, **kwargs)` calls `function(runtime, **kwargs)` on `world` ranks, in a process group of their
own that lasts for the call, and returns the results in the order of ranks.
"""

import importlib
import os
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.multiprocessing as mp

JOBS_PER_SET = 3  # DeepSpeed's hooks keep every engine alive, and with it groups whose threads wake all the time


class RankError(AssertionError):
    """A rank raised; the text is its traceback."""


class Pool:
    """Keeps one set of processes for each world size, because DeepSpeed counts what a process has built."""

    def __init__(self) -> None:
        self.sets: dict[int, list[tuple[Any, Connection]]] = {}
        self.jobs: Counter[int] = Counter()

    def run(self, function: Callable[..., Any], world: int, **kwargs: Any) -> list[Any]:
        if self.jobs[world] % JOBS_PER_SET == 0:
            self._stop(self.sets.pop(world, []))
        self.jobs[world] += 1
        workers = self.sets.setdefault(world, []) or self._start(world)
        with tempfile.TemporaryDirectory() as folder:
            job = (function.__module__, function.__name__, world, str(Path(folder) / "store"), kwargs)
            for rank, (_, pipe) in enumerate(workers):
                pipe.send((rank, *job))
            answers = [pipe.recv() for _, pipe in workers]
        errors = [text for ok, text in answers if not ok]
        if errors:
            raise RankError("\n".join(errors))
        return [result for _, result in answers]

    def _start(self, world: int) -> list[tuple[Any, Connection]]:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["preloaded"])
        for number in range(world):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(theirs, number), daemon=True)
            with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # Python 3.11 tells the server no path
                worker.start()
            theirs.close()
            self.sets[world].append((worker, ours))
        return self.sets[world]

    def _stop(self, workers: list[tuple[Any, Connection]]) -> None:
        for worker, _ in workers:
            worker.kill()  # to end by itself takes seconds: threads of old groups are waited for
            worker.join()

    def close(self) -> None:
        for workers in self.sets.values():
            self._stop(workers)


def _serve(pipe: Connection, number: int) -> None:
    import torch

    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})  # a rank and its threads on one core take a fifth less time
    warnings.simplefilter("error", UserWarning)
    while True:
        job = pipe.recv()
        try:
            pipe.send((True, _call(*job)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def _call(rank: int, module: str, name: str, world: int, store: str, kwargs: dict[str, Any]) -> Any:
    import torch
    import torch.distributed as dist

    from dgpt.runtime import Runtime

    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ.update(ranks, OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    function = getattr(importlib.import_module(module), name)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        return function(Runtime(rank, rank, world, torch.device("cpu")), **kwargs)
    finally:
        if world > 1:
            dist.destroy_process_group()
            _forget_deepspeed_group()


def _forget_deepspeed_group() -> None:
    """DeepSpeed caches the process group it first saw."""
    import sys

    if "deepspeed.comm.comm" in sys.modules:
        sys.modules["deepspeed.comm.comm"].cdb = None  # type: ignore[attr-defined]
