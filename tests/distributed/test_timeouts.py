"""How long ranks wait for each other: long until the first step is done, then not, in every group."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pool import Pool
from runs import Seen, Topology, on_step, start, watch
from torch.distributed import distributed_c10d as c10d

from dgpt.config import RunConfig
from dgpt.pretrain import Pretraining
from dgpt.runtime import Runtime, set_timeout


def timeouts() -> list[float]:
    """Of all process groups of this rank, seconds."""
    backends = (group._get_backend(torch.device("cpu")) for group in c10d._world.pg_map)
    return [backend.options._timeout.total_seconds() for backend in backends]


def note_timeouts(runtime: Runtime, config: RunConfig) -> Seen:
    """Task of the pool: a run that notes them in its first step and in its third."""
    seen = Seen()

    def change(run: Pretraining) -> None:
        set_timeout(config.parallel.first_step_timeout_seconds)  # as `join` does, which the pool has done instead
        for number in (1, 3):
            on_step(run, number, lambda: seen.events.append(str(sorted(set(timeouts())))))

    return watch(runtime, config, seen, change)


@pytest.mark.parametrize("topology", [Topology(tp=2), Topology(dp=2, zero=3)], ids=str)
def test_after_the_first_step_all_groups_wait_less(
    pool: Pool, tiny_data: Path, tmp_path: Path, topology: Topology
) -> None:
    settings = ("parallel.first_step_timeout_seconds=500", "parallel.timeout_seconds=250")
    for rank in start(pool, tiny_data, tmp_path, topology, *settings, task=note_timeouts):
        assert rank.events == ["[500.0]", "[250.0]"]


def meet(runtime: Runtime, sleep_seconds: float) -> tuple[str, float]:
    """Task of the pool: after a collective rank 1 is late for the next one. What it was for rank 0, and seconds."""
    group = dist.new_group([0, 1])
    dist.all_reduce(torch.ones(1), group=group)
    set_timeout(1)
    begin = time.monotonic()
    try:
        if runtime.rank == 1:
            time.sleep(sleep_seconds)
        dist.all_reduce(torch.ones(1), group=group)
    except RuntimeError as error:
        return type(error).__name__, time.monotonic() - begin
    return "", time.monotonic() - begin


def test_a_hung_peer_is_noticed_after_the_second_timeout(pool: Pool) -> None:
    (problem, seconds), _ = pool.run(meet, 2, sleep_seconds=4)
    assert problem == "RuntimeError"
    assert 1 <= seconds < 4
