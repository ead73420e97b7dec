"""A trace is written for the chosen steps and ranks, and is what a trace viewer reads."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from dgpt.train.profile import TRACED_RANKS, Profiler


def run(profiler: Profiler) -> None:
    for step in range(4):
        with profiler.step(step):
            torch.ones(8, 8) @ torch.ones(8, 8)


def test_chosen_step_gets_a_chrome_trace_with_its_operators(tmp_path: Path) -> None:
    run(Profiler((2,), tmp_path, rank=3, device=torch.device("cpu")))
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name == "step_00000002_rank_00003.json.gz"
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert "aten::mm" in {event.get("name") for event in events}


def test_nothing_is_written_for_other_steps_and_far_ranks(tmp_path: Path) -> None:
    run(Profiler((), tmp_path, rank=0, device=torch.device("cpu")))
    run(Profiler((2,), tmp_path, rank=TRACED_RANKS, device=torch.device("cpu")))
    assert not list(tmp_path.iterdir())


def test_a_trace_that_cannot_be_written_costs_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "profile").touch()
    run(Profiler((2,), tmp_path, rank=0, device=torch.device("cpu")))
    assert capsys.readouterr().err.startswith("no trace of step 2 of rank 0, and training goes on: ")
