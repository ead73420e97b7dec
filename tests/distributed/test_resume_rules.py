"""What a start makes of a checkpoint that is not quite its own: other samples, another optimizer, another folder."""

from pathlib import Path

import pytest
from pool import Pool
from runs import Seen, Topology, start, watch

from dgpt.checkpoint import Checkpointer, MeshEntry, Meta
from dgpt.config import RunConfig
from dgpt.outcome import DONE, MISTAKE, STOPPED
from dgpt.pretrain import Pretraining
from dgpt.runtime import Runtime
from dgpt.train.rows import read_rows

TWO = Topology(dp=2, zero=1)


def as_weights_only(runtime: Runtime, config: RunConfig) -> Seen:
    """Task of the pool: a run that also leaves, as its newest checkpoint, one without optimizer state."""
    seen = Seen()

    def change(run: Pretraining) -> None:
        save = run.save

        def saving(done: int, loss: float) -> None:
            save(done, loss)
            run.checkpointer.wait()
            mesh = MeshEntry(world_size=2, dp_size=2, tp=1, zero_stage=1)
            meta = Meta(tokens=0, samples=0, loss=None, data_hash=run.setup.data_hash,
                        tokenizer_hash=run.setup.tokenizer.hash, config=run.config.model_dump(mode="json"))  # fmt: skip
            bare = Checkpointer(config.run_dir, runtime.rank, mesh, "bare")
            runtime.broadcast(None)  # rank 0 has cleaned the folder
            bare.save(done + 1, [f for f in run.engine.fragments() if f.state == "weight"], meta)
            bare.wait()

        run.save = saving  # type: ignore[method-assign]

    return watch(runtime, config, seen, change)


def test_a_run_that_has_lost_its_checkpoints_says_so_and_keeps_its_numbers(
    pool: Pool, tiny_data: Path, tmp_path: Path
) -> None:
    start(pool, tiny_data, tmp_path, Topology(), "training.steps=4")
    before = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    (rank,) = start(pool, tiny_data, tmp_path, Topology(), "training.steps=2")
    assert rank.code == DONE
    assert "WARNING, an earlier start was at step 4, and no checkpoint of it is here" in rank.output
    assert (tmp_path / "metrics.until_4.jsonl").read_text() == before
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_checkpoint_without_optimizer_state_gives_weights_only_and_says_so(
    pool: Pool, tiny_data: Path, tmp_path: Path
) -> None:
    start(pool, tiny_data, tmp_path, TWO, "training.steps=3", "schedule.kind=constant", task=as_weights_only)
    ranks = start(pool, tiny_data, tmp_path, TWO, "training.steps=6", "schedule.kind=constant", task=note_moments)
    assert {rank.code for rank in ranks} == {DONE}, ranks[0].errors
    assert "resuming at step 4 from step_00000004," in ranks[0].output
    assert "WARNING, the optimizer starts anew: the checkpoint holds only weight\n" in ranks[0].output
    assert [rank.events for rank in ranks] == [["exp_avg: 0.0", "exp_avg_sq: 0.0", "step: 0"]] * 2


def note_moments(runtime: Runtime, config: RunConfig) -> Seen:
    """Task of the pool: a run that notes its optimizer's state before the first step."""
    seen = Seen()

    def change(run: Pretraining) -> None:
        for state in ("exp_avg", "exp_avg_sq"):
            largest = max(float(f.tensor.abs().max()) for f in run.engine.fragments() if f.state == state)
            seen.events.append(f"{state}: {largest}")
        inner = run.engine.engine.optimizer.optimizer  # type: ignore[attr-defined]
        seen.events.append(f"step: {max(int(state['step']) for state in inner.state.values())}")

    return watch(runtime, config, seen, change)


@pytest.mark.parametrize("change", ["seed=5", "training.global_batch_size=4"])
def test_other_samples_are_refused_on_every_rank_or_allowed_and_said(
    pool: Pool, tiny_data: Path, tmp_path: Path, change: str
) -> None:
    assert {rank.code for rank in start(pool, tiny_data, tmp_path, TWO, stop_after=2)} == {STOPPED}
    ranks = start(pool, tiny_data, tmp_path, TWO, change)
    assert [rank.code for rank in ranks] == [MISTAKE] * 2
    assert ranks[0].errors == ranks[1].errors
    assert f"{change.split('=')[0]} = " in ranks[0].errors
    allowed = start(pool, tiny_data, tmp_path, TWO, change, "resume.allow_data_change=true")
    assert [rank.code for rank in allowed] == [DONE] * 2
    assert "WARNING, other samples from here on (resume.allow_data_change): " in allowed[0].output
    assert "resuming at step 2 from" in allowed[0].output


def test_a_finished_run_whose_last_checkpoint_is_damaged_is_not_finished(
    pool: Pool, tiny_data: Path, tmp_path: Path
) -> None:
    """The bit is flipped where the size does not tell."""
    settings = ("training.steps=4", "checkpoint.every_steps=2")
    whole = start(pool, tiny_data, tmp_path, TWO, *settings)
    path = tmp_path / "checkpoints" / "step_00000004" / "rank_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = start(pool, tiny_data, tmp_path, TWO, *settings)
    assert "resuming at step 2 from step_00000002," in again[0].output
    assert f"{path}: expected sha256" in again[0].output
    assert [(rank.code, rank.state) for rank in again] == [(DONE, rank.state) for rank in whole]
    third = start(pool, tiny_data, tmp_path, TWO, *settings)
    assert "finished before:" in third[0].output
