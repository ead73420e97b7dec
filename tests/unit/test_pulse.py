"""How long ranks wait for each other, by the phases of a run."""

from pathlib import Path

import pytest
import torch

from dgpt import pulse
from dgpt.config import load_config
from dgpt.runtime import Runtime

SETTINGS = ("parallel.first_step_timeout_seconds=500", "parallel.timeout_seconds=250")


def test_collectives_have_less_time_after_the_first_step_but_where_the_work_of_ranks_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    monkeypatch.setattr(pulse.processes, "set_timeout", told.append)
    config = load_config(None, [f"run_dir={tmp_path}", *SETTINGS])
    one = pulse.Pulse(config, Runtime(0, 0, 2, torch.device("cpu")), "a")
    one.begin()
    for _ in range(2):
        one.stepped()
    assert told == [250]
    with one.patient():
        assert told == [250, 500]
    assert told == [250, 500, 250]
