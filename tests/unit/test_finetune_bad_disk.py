"""A disk that gives back other bytes: that checkpoint is neither the best of a fine-tuning nor its last."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dgpt.checkpoint import files
from dgpt.cli import main
from dgpt.outcome import DONE, FAILED


@pytest.mark.parametrize(
    ("bad", "code", "checkpoints"),
    [("step_00000002", DONE, ["step_00000006"]), ("step_00000006", FAILED, ["step_00000002"])],
)
def test_a_checkpoint_that_comes_back_otherwise_is_neither_the_best_nor_the_last(
    bad: str, code: int, checkpoints: list[str], random_run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    real, run = files.hash_on_disk, tmp_path / "run"

    def hash_on_disk(path: Path, alive: Callable[[], None]) -> str:
        if path.parent.name != bad:
            return real(path, alive)
        time.sleep(0.5)  # meanwhile it is there, and training goes on
        return "other"

    monkeypatch.setattr(files, "hash_on_disk", hash_on_disk)
    rows = json.dumps({"prompt": "ba fe =>", "completion": " ba"}) + "\n"
    for name, count in (("train", 600), ("validation", 8)):
        (tmp_path / f"{name}.jsonl").write_text(rows * count)
    (tmp_path / "run.toml").touch()
    ended = main(["finetune", str(tmp_path / "run.toml"), f"base={random_run}", f"data.path={tmp_path}",
                 f"run_dir={run}", "logging.tensorboard=false", "precision.dtype=fp32", "checkpoint.every_steps=0",
                 "training.global_batch_size=8", "training.micro_batch_size=4", "training.steps=6",
                 "training.eval_every_steps=2", "training.eval_generations=0", "best.min_delta=100.0"])  # fmt: skip
    assert ended == code
    said = "".join(capsys.readouterr())
    assert "the disk gives back other bytes than were written" in said
    assert ("a run ends with a checkpoint" in said) == (code == FAILED)
    assert sorted(folder.name for folder in (run / "checkpoints").iterdir()) == checkpoints
    assert (run / "best.json").exists() == (bad != "step_00000002")
