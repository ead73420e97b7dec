"""How long before its end a job is asked to save."""

import time
from datetime import datetime
from pathlib import Path

import pytest
import torch

from dgpt.checkpoint import list_checkpoints
from dgpt.checkpoint.format import MeshEntry, Meta
from dgpt.checkpoint.save import Checkpointer
from dgpt.fragments import Fragment
from dgpt.slurm.clock import Clock
from dgpt.slurm.lead import Pace, measured, measured_save, measured_step
from dgpt.slurm.requeue import signal_option


def checkpoint(run_dir: Path, step: int, text: str) -> None:
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(text)


def test_a_real_checkpoint_tells_how_long_it_took(tmp_path: Path) -> None:
    fragment = Fragment("a", "weight", (4,), None, 0, 1, 0, torch.arange(4.0))
    saver = Checkpointer(tmp_path, 0, MeshEntry(world_size=1, dp_size=1, tp=1, zero_stage=0), "a")
    meta = Meta(tokens=0, samples=0, loss=None, data_hash="", tokenizer_hash="", config={})
    begin = time.monotonic()
    saver.save(3, [fragment], meta)
    saver.wait()
    assert [found.step for found in list_checkpoints(tmp_path)] == [3]
    found = measured_save(tmp_path)
    assert found is not None
    assert 0 < found[0] < time.monotonic() - begin
    assert found[1] == "measured at step_00000003"


def test_the_slowest_of_the_newest_saves_counts(tmp_path: Path) -> None:
    assert measured_save(tmp_path) is None
    for step, seconds in ((10, 99.0), (20, 5.0), (30, 8.0), (40, 6.0)):
        checkpoint(tmp_path, step, f'{{"seconds":{seconds},"mesh":{{"world_size":8}}}}')
    checkpoint(tmp_path, 5, '{"format":1,"mesh":{"world_size":8}}')  # of an earlier version
    assert measured_save(tmp_path) == (8.0, "measured at step_00000030")
    assert measured_save(tmp_path, 16) == (8.0, "measured at step_00000030")
    assert measured_save(tmp_path, 2) == (32.0, "measured at step_00000030, by 8 ranks instead of 2")


def test_nothing_is_measured_before_both_are(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10, '{"seconds":50.0,"mesh":{"world_size":8}}')
    assert measured(tmp_path) is None
    assert signal_option(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "speed/seconds_per_step": 9.5}\n{"torn')
    assert measured_step(tmp_path) == 9.5
    found = measured(tmp_path)
    assert found is not None
    assert found.needed == 169.0
    assert signal_option(tmp_path) == ["--signal=B:USR1@229"]


def test_the_lead_is_never_shorter_than_two_minutes() -> None:
    assert Pace(0.0, 0.1, 0.2, "", "").lead == 120


@pytest.mark.parametrize(("left", "early"), [(200.0, False), (100.0, True)])
def test_a_job_whose_saves_became_slow_asks_by_itself(tmp_path: Path, left: float, early: bool) -> None:
    """--signal came with the submission, when nothing had been measured."""
    end = datetime.fromtimestamp(time.time() + left).isoformat()
    clock = Clock(tmp_path, {"EndTime": end})
    assert not clock.time_to_save(), "nothing is known yet"
    checkpoint(tmp_path, 10, '{"seconds":50.0,"mesh":{"world_size":8}}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "speed/seconds_per_step": 1.0}\n')
    clock = Clock(tmp_path, {"EndTime": end})
    assert clock.time_to_save() == early  # 2 x 50 + 2 x 1 + 10
    assert not Clock(tmp_path, {"EndTime": "Unknown"}).time_to_save()


def test_a_file_server_that_gives_no_answer_ends_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(run_dir: Path) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("dgpt.slurm.clock.measured", stale)
    assert not Clock(tmp_path, {}).time_to_save()
