"""`dgpt doctor` on this machine."""

import os
from pathlib import Path

import pytest

from dgpt.cli import main
from dgpt.outcome import DONE, FAILED, MISTAKE


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One machine, outside of any job; a run folder of its own."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "DGPT_")) or name in ("NNODES", "RANK")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text('run_dir = "run"\n')


def test_this_machine_is_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "run.toml"]) == DONE
    said = capsys.readouterr().out
    assert "the CPU   right" in said
    assert "all-reduce over 1 ranks: " in said
    assert "1 nodes examined in" in said


def test_a_mistake_in_the_file_or_the_variables_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["doctor", "nothing.toml"]) == MISTAKE
    assert "'nothing.toml' does not exist" in capsys.readouterr().err
    monkeypatch.setenv("NNODES", "2")
    assert main(["doctor"]) == MISTAKE
    assert "NNODES > 1 without MASTER_ADDR" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").write_text("a file")
    assert main(["doctor", "run.toml"]) == FAILED
    assert "'run' cannot be written on" in capsys.readouterr().out
