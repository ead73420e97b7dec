"""A run that was stopped and resumed is the run that never stopped: bit for bit at its own topology."""

import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from itertools import chain, pairwise, product
from pathlib import Path

import numpy as np
import pytest
from pool import Pool
from runs import STEPS, Seen, Topology, start, watch

from dgpt.config import RunConfig
from dgpt.outcome import DONE, MISTAKE, STOPPED
from dgpt.pretrain import Pretraining
from dgpt.runtime import Runtime
from dgpt.train.rows import read_rows

STOP = 3
LONG = STOP + 20  # steps
G = 8  # global batch
ONE = Topology()
SHAPES = [ONE, *(Topology(dp=2, zero=zero) for zero in range(4)), Topology(tp=2),
          Topology(tp=2, sequence_parallel=True)]  # fmt: skip
WIDE = Topology(tp=2, dp=2, zero=3, sequence_parallel=True)
RING = [ONE, Topology(dp=2, zero=1), Topology(dp=2, zero=3), Topology(tp=2, zero=1), Topology(dp=4, zero=2),
        WIDE, Topology(dp=2, zero=0), Topology(tp=4, zero=1)]  # fmt: skip
NEIGHBOURS = [*pairwise([*RING, ONE]), (ONE, RING[2]), (ONE, RING[3])]


def losses(run_dir: Path) -> dict[int, float]:
    """Step -> loss, of steps that are there once and in order."""
    rows = [(int(row["step"]), float(row["loss/train"])) for row in read_rows(run_dir / "metrics.jsonl")]
    assert [step for step, _ in rows] == sorted({step for step, _ in rows})
    return dict(rows)


def stream(ranks: list[Seen]) -> dict[int, list[int]]:
    """Sample number -> token ids, of all ranks."""
    return {number: ids for rank in ranks for micro_step in rank.micro_steps for number, ids in micro_step.items()}


@pytest.mark.parametrize(("shape", "dtype"), [*product(SHAPES, ("fp32", "bf16")), (WIDE, "bf16")], ids=str)
def test_same_shape_continues_bit_for_bit(
    pool: Pool, tiny_data: Path, tmp_path: Path, shape: Topology, dtype: str
) -> None:
    settings = (f"precision.dtype={dtype}", "model.dropout=0.1", "checkpoint.every_steps=10", f"training.steps={LONG}")
    whole = start(pool, tiny_data, tmp_path / "whole", shape, *settings)
    first = start(pool, tiny_data, tmp_path / "cut", shape, *settings, stop_after=STOP)
    second = start(pool, tiny_data, tmp_path / "cut", shape, *settings)
    assert [rank.code for rank in chain(whole, first, second)] == [
        *[DONE] * shape.world, *[STOPPED] * shape.world, *[DONE] * shape.world
    ]  # fmt: skip
    for a, b, c in zip(whole, first, second, strict=True):
        assert b.state != a.state
        assert c.state == a.state
        assert b.micro_steps + c.micro_steps == a.micro_steps
        assert len(a.micro_steps) == LONG * G // (shape.micro_batch_size * shape.dp)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert list(losses(tmp_path / "whole")) == [*range(1, LONG + 1)]
    states = {state for rank in whole for _, state, _ in rank.state}
    assert states == {"weight", "exp_avg", "exp_avg_sq"}


@pytest.fixture(scope="module")
def stopped(pool: Pool, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Topology], Path]:
    """The folder of a run that was stopped after STOP steps at a topology; copy it before use."""
    folders: dict[Topology, Path] = {}

    def of(topology: Topology) -> Path:
        if topology not in folders:
            folders[topology] = tmp_path_factory.mktemp("stopped") / str(topology)
            ranks = start(pool, tiny_data, folders[topology], topology, stop_after=STOP)
            assert {rank.code for rank in ranks} == {STOPPED}
        return folders[topology]

    return of


@pytest.fixture(scope="module")
def never_stopped(pool: Pool, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Seen]]:
    """One process."""
    folder = tmp_path_factory.mktemp("never_stopped")
    return folder, start(pool, tiny_data, folder, ONE)


@pytest.mark.parametrize(("before", "after"), NEIGHBOURS, ids=str)
def test_another_topology_continues_the_curve_on_the_same_samples(
    pool: Pool, tiny_data: Path, tmp_path: Path, stopped: Callable[[Topology], Path],
    never_stopped: tuple[Path, list[Seen]], before: Topology, after: Topology,
) -> None:  # fmt: skip
    run_dir = Path(shutil.copytree(stopped(before), tmp_path / "run"))
    ranks = start(pool, tiny_data, run_dir, after)
    assert {rank.code for rank in ranks} == {DONE}, ranks[0].errors
    assert losses(run_dir) == pytest.approx(losses(never_stopped[0]), rel=1e-5)
    everything = stream(never_stopped[1])
    assert stream(ranks) == {number: everything[number] for number in range(STOP * G, STEPS * G)}
    written_by = f"dp {before.dp} x tp {before.tp}, ZeRO {before.zero}"
    assert f"resuming at step {STOP} from step_{STOP:08d}, written by {written_by}\n" in ranks[0].output
    next_batch = np.array([everything[number] for number in range(STOP * G, (STOP + 1) * G)], "<u4")
    assert f"the next batch has fingerprint {sha256(next_batch.tobytes()).hexdigest()[:16]}\n" in ranks[0].output


def forget_moments(runtime: Runtime, config: RunConfig) -> Seen:
    """Task of the pool: a resumed run that lost its optimizer state on the way."""

    def change(run: Pretraining) -> None:
        for fragment in run.engine.fragments():
            if fragment.state != "weight":
                fragment.tensor.zero_()

    return watch(runtime, config, Seen(), change)


def test_a_lost_optimizer_state_would_be_noticed_above(
    pool: Pool, tiny_data: Path, tmp_path: Path, stopped: Callable[[Topology], Path],
    never_stopped: tuple[Path, list[Seen]],
) -> None:  # fmt: skip
    run_dir = Path(shutil.copytree(stopped(ONE), tmp_path / "run"))
    start(pool, tiny_data, run_dir, ONE, task=forget_moments)
    assert losses(run_dir)[STEPS] != pytest.approx(losses(never_stopped[0])[STEPS], rel=1e-3)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def file_of(run_dir: Path, step: int, rank: int) -> Path:
    return run_dir / "checkpoints" / f"step_{step:08d}" / f"rank_{rank:05d}.safetensors"


@pytest.mark.parametrize("shape", [ONE, Topology(dp=2, zero=1), Topology(dp=2, zero=3), Topology(tp=2)], ids=str)
def test_all_ranks_fall_back_together_from_a_damaged_checkpoint(
    pool: Pool, tiny_data: Path, tmp_path: Path, shape: Topology
) -> None:
    """Without tensor parallelism the last rank alone reads the damaged file."""
    whole = start(pool, tiny_data, tmp_path / "whole", shape, "checkpoint.every_steps=2")
    run_dir = tmp_path / "run"
    start(pool, tiny_data, run_dir, shape, "checkpoint.every_steps=2", stop_after=STOP)
    damaged = file_of(run_dir, STOP, shape.world - 1)
    flip_bit(damaged)
    (run_dir / "checkpoints" / "step_00000005.tmp-killed").mkdir()
    ranks = start(pool, tiny_data, run_dir, shape, "checkpoint.every_steps=2")
    assert re.search(rf"passed over .*{damaged}: expected sha256 \w+, found \w+\n", ranks[0].output)
    assert "resuming at step 2 from step_00000002," in ranks[0].output
    left = "the save of step_00000005 by an earlier start did not end: what it left is cleaned up\n"
    assert "".join(rank.output for rank in ranks).count(left) == 1
    assert [(rank.code, rank.state) for rank in ranks] == [(DONE, rank.state) for rank in whole]
    assert losses(run_dir) == losses(tmp_path / "whole")


@pytest.mark.parametrize("damage", [flip_bit, Path.unlink])
def test_no_whole_checkpoint_is_refused_on_all_ranks_and_never_step_0(
    pool: Pool, tiny_data: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    shape = Topology(dp=2, zero=1)
    start(pool, tiny_data, tmp_path, shape, "checkpoint.every_steps=2", stop_after=STOP)
    for step in (2, STOP):
        damage(file_of(tmp_path, step, 1))
    before = losses(tmp_path)
    ranks = start(pool, tiny_data, tmp_path, shape)
    assert [(rank.code, rank.micro_steps) for rank in ranks] == [(MISTAKE, [])] * 2
    assert ranks[0].errors == ranks[1].errors
    assert "none of the 2 checkpoints here is whole" in ranks[0].errors
    assert all(str(file_of(tmp_path, step, 1)) in ranks[0].errors for step in (2, STOP))
    assert "to start anew at step 0, give another run_dir, or move this one away" in ranks[0].errors
    assert losses(tmp_path) == before
