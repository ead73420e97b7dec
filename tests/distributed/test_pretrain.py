"""Whole runs: saving beside training, what is kept, steps that are not finite, and a run that is done."""

import re
import shutil
import threading
from collections.abc import Callable, Iterable
from itertools import count, product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from pool import Pool
from runs import STEPS, Seen, Topology, on_step, start, watch
from safetensors.torch import load_file
from torch import Tensor

from dgpt.checkpoint import files, list_checkpoints, verify
from dgpt.config import RunConfig
from dgpt.outcome import DONE, FAILED
from dgpt.pretrain import Pretraining
from dgpt.runtime import Runtime

ONE = Topology()
EVERY_ZERO = [Topology(dp=2, zero=zero) for zero in range(4)]


def steps_of(run_dir: Path) -> list[int]:
    """Of the checkpoints, each of them whole in every bit."""
    rows = list_checkpoints(run_dir)
    assert [problem for row in rows for problem in verify(row.folder)] == []
    return [row.step for row in rows]


def train_while_a_save_hangs(runtime: Runtime, config: RunConfig) -> Seen:
    """Task of the pool: the file of step 3 gets written only half a second after the save of step 6 was asked for."""
    seen, free, write = Seen(), threading.Event(), files.write_hashed

    def slow(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
        ours = path.suffix == ".safetensors"
        assert not ours or free.wait(60)
        result = write(path, chunks)
        seen.events.extend([f"written {path.parent.name[:13]}"] * ours)
        return result

    def change(run: Pretraining) -> None:
        for number in range(1, STEPS + 1):
            on_step(run, number, lambda number=number: seen.events.append(f"step {number}"))  # type: ignore[misc]
        save = run.checkpointer.save

        def saving(step: int, *arguments: Any) -> None:
            seen.events.append(f"save {step}")
            if step == STEPS:
                threading.Timer(0.5, free.set).start()
            save(step, *arguments)
            seen.events.append(f"saved {step}")

        run.checkpointer.save = saving  # type: ignore[method-assign]

    with patch.object(files, "write_hashed", slow):
        return watch(runtime, config, seen, change)


@pytest.mark.parametrize("shape", [ONE, Topology(dp=2, zero=1)], ids=str)
def test_training_goes_on_during_a_save_and_the_next_save_waits(
    pool: Pool, tiny_data: Path, tmp_path: Path, shape: Topology
) -> None:
    settings = ("checkpoint.every_steps=3",)
    ranks = start(pool, tiny_data, tmp_path / "slow", shape, *settings, task=train_while_a_save_hangs)
    for rank in ranks:
        assert rank.events[:11] == [
            "step 1", "step 2", "step 3", "save 3", "saved 3", "step 4", "step 5", "step 6", "save 6",
            "written step_00000003", "saved 6",
        ]  # fmt: skip
    start(pool, tiny_data, tmp_path / "quick", shape, *settings)
    assert steps_of(tmp_path / "slow") == steps_of(tmp_path / "quick") == [3, STEPS]
    for quick in (tmp_path / "quick").rglob("rank_*.safetensors"):
        slow = load_file(tmp_path / "slow" / quick.relative_to(tmp_path / "quick"))
        assert all(torch.equal(slow.pop(key), tensor) for key, tensor in load_file(quick).items())
        assert not slow


def train_on_a_full_disk(runtime: Runtime, config: RunConfig, full_at: int) -> Seen:
    """Task of the pool: the last rank cannot write its file of step `full_at`."""
    write = files.write_hashed

    def failing(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
        if path.suffix == ".safetensors" and f"step_{full_at:08d}" in str(path) and runtime.rank == 1:
            raise OSError(28, "No space left on device")
        return write(path, chunks)

    with patch.object(files, "write_hashed", failing):
        return watch(runtime, config, Seen(), lambda run: None)


def test_a_failed_save_is_told_and_the_run_goes_on(pool: Pool, tiny_data: Path, tmp_path: Path) -> None:
    ranks = start(
        pool, tiny_data, tmp_path, Topology(dp=2), "checkpoint.every_steps=2", task=train_on_a_full_disk, full_at=4
    )
    assert {rank.code for rank in ranks} == {DONE}
    assert "CHECKPOINT NOT SAVED at step 4 (failure 1 in a row" in ranks[0].errors
    assert steps_of(tmp_path) == [2, STEPS]


def test_a_run_whose_last_save_failed_has_not_finished(pool: Pool, tiny_data: Path, tmp_path: Path) -> None:
    settings = ("checkpoint.every_steps=2",)
    ranks = start(
        pool, tiny_data, tmp_path, Topology(dp=2), *settings, task=train_on_a_full_disk, full_at=STEPS
    )  # fmt: skip
    for rank in ranks:
        assert rank.code == FAILED
        assert "No space left on device" in rank.errors
        assert f"dgpt: step {STEPS} is done, but its checkpoint could not be written\n" in rank.errors
        assert "Traceback" not in rank.errors
    assert "finished" not in ranks[0].output
    again = start(pool, tiny_data, tmp_path, Topology(dp=2), *settings)
    assert {rank.code for rank in again} == {DONE}
    assert "resuming at step 4 " in again[0].output
    assert steps_of(tmp_path) == [2, 4, STEPS]


def test_old_checkpoints_go_but_for_the_last_and_every_third(pool: Pool, tiny_data: Path, tmp_path: Path) -> None:
    keep = ("checkpoint.every_steps=1", "checkpoint.keep_last=2", "training.steps=8")
    start(pool, tiny_data, tmp_path / "some", Topology(dp=2), *keep, "checkpoint.keep_every=3")
    assert steps_of(tmp_path / "some") == [3, 6, 7, 8]
    start(pool, tiny_data, tmp_path / "few", Topology(dp=2), *keep)
    assert steps_of(tmp_path / "few") == [7, 8]


class BadGradient(torch.autograd.Function):
    """A finite loss with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.inf


SPOILS: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN loss": lambda loss: loss * torch.nan,
    "infinite loss of finite gradient": lambda loss: loss + torch.inf,
    "gradient": BadGradient.apply,
}


def spoil_one_micro_step(runtime: Runtime, config: RunConfig, how: str) -> Seen:
    """Task of the pool: the second micro step of step 4 goes wrong, on the last rank alone."""

    def change(run: Pretraining) -> None:
        model, accum = run.engine.model, run.setup.plan.grad_accum_steps
        forward, calls = model.forward, count(run.start_step * accum)

        def spoiled(*arguments: Any) -> Tensor:
            loss: Tensor = forward(*arguments)
            return SPOILS[how](loss) if next(calls) == 3 * accum + 1 else loss

        if runtime.rank == runtime.world_size - 1:
            model.forward = spoiled  # type: ignore[method-assign]

    return watch(runtime, config, Seen(), change)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *product([ONE, *EVERY_ZERO], ("fp32", "bf16")),
        (Topology(tp=2, zero=1), "bf16"),
        (Topology(tp=2, zero=3), "fp32"),
    ],
    ids=str,
)
def test_a_step_that_is_not_finite_ends_all_ranks_and_is_not_saved(
    pool: Pool, tiny_data: Path, tmp_path: Path, shape: Topology, dtype: str
) -> None:
    settings = ("checkpoint.every_steps=1", f"precision.dtype={dtype}")
    for number, how in enumerate(SPOILS):
        run_dir = tmp_path / str(number)
        ranks = start(pool, tiny_data, run_dir, shape, *settings, task=spoil_one_micro_step, how=how)
        assert {rank.code for rank in ranks} == {FAILED}, how
        assert len({rank.errors for rank in ranks}) == 1
        errors, last = ranks[-1].errors, shape.world - 1
        assert errors.startswith("dgpt: step 4: the loss or the gradient is not finite\n")
        accum = 8 // (shape.micro_batch_size * shape.dp)
        samples = ", ".join(map(str, ranks[last].micro_steps[3 * accum + 1]))
        where = f"\n  rank {last}: the loss on samples {samples}\n"
        everywhere = f"\n  ranks 0 to {last}: every loss is finite, the gradient over their samples 24 to 31 is not\n"
        assert (everywhere if how == "gradient" else where) in errors
        assert "Traceback" not in errors
        assert steps_of(run_dir) == [1, 2, 3]
        assert {len(rank.micro_steps) for rank in ranks} == {4 * accum}


def test_after_a_spoiled_step_the_run_goes_on_as_if_nothing_had_been(
    pool: Pool, tiny_data: Path, tmp_path: Path
) -> None:
    shape = Topology(dp=2, zero=1)
    start(pool, tiny_data, tmp_path / "spoiled", shape, "checkpoint.every_steps=1", task=spoil_one_micro_step,
          how="NaN loss")  # fmt: skip
    resumed = start(pool, tiny_data, tmp_path / "spoiled", shape)
    whole = start(pool, tiny_data, tmp_path / "whole", shape)
    assert [rank.state for rank in resumed] == [rank.state for rank in whole]


def test_a_finished_run_says_so_and_changes_nothing(pool: Pool, tiny_data: Path, tmp_path: Path) -> None:
    shape = Topology(dp=2)
    start(pool, tiny_data, tmp_path / "run", shape)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (tmp_path / "run").rglob("*")}
    for steps in (STEPS, STEPS - 1):
        ranks = start(pool, tiny_data, tmp_path / "run", shape, f"training.steps={steps}")
        assert [(rank.code, rank.micro_steps, rank.errors) for rank in ranks] == [(DONE, [], "")] * 2
        done = f"is at step {STEPS} of training.steps = {steps}; raise training.steps to go on\n"
        assert ranks[0].output == f"finished before: {tmp_path / 'run'} {done}"
        assert ranks[1].output == ""
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (tmp_path / "run").rglob("*")} == before
    more = start(pool, tiny_data, tmp_path / "run", shape, f"training.steps={STEPS + 1}")
    assert {rank.code for rank in more} == {DONE}
    assert f"WARNING, this bends the curve: training.steps = {STEPS} -> {STEPS + 1}\n" in more[0].output
    assert steps_of(tmp_path / "run") == [STEPS, STEPS + 1]


def test_evaluation_and_sample_texts_change_nothing(pool: Pool, tiny_data: Path, tmp_path: Path) -> None:
    settings = ("model.dropout=0.1", "checkpoint.keep_last=1")
    watching = ("training.eval_every_steps=2", "logging.sample_every_steps=2", "logging.sample_prompt=b",
                "logging.sample_tokens=3", "training.eval_samples=5")  # fmt: skip
    for shape in (ONE, Topology(dp=2, zero=3), Topology(tp=2, sequence_parallel=True)):
        plain, watched = (tmp_path / f"{shape}-{name}" for name in ("plain", "watched"))
        expected = start(pool, tiny_data, plain, shape, *settings)
        ranks = start(pool, tiny_data, watched, shape, *settings, *watching)
        assert [(rank.code, rank.state) for rank in ranks] == [(DONE, rank.state) for rank in expected]
        assert len(re.findall(r"validation loss \d", ranks[0].output)) == 3
        shutil.rmtree(watched)
