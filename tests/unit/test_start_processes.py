"""How many processes a launch starts, and when it starts any."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dgpt import launch
from dgpt.errors import UserError
from dgpt.watch.runtime import built_for_gpus


@pytest.mark.parametrize(("gpus", "nproc", "expected"), [(0, None, 1), (0, 3, 3), (4, None, 4), (4, 2, 2)])
def test_one_process_per_gpu_or_as_asked(
    monkeypatch: pytest.MonkeyPatch, gpus: int, nproc: int | None, expected: int
) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: gpus)
    assert launch.local_processes(nproc) == expected


@pytest.mark.parametrize(("gpus", "nproc"), [(0, 0), (4, 5), (4, -1)])
def test_a_number_that_cannot_be_started_is_refused(monkeypatch: pytest.MonkeyPatch, gpus: int, nproc: int) -> None:
    monkeypatch.setattr(launch, "visible_gpus", lambda: gpus)
    with pytest.raises(UserError, match=f"--nproc = {nproc}, and this machine shows {gpus} GPUs"):
        launch.local_processes(nproc)


@pytest.mark.parametrize(("build", "gpus"), [("cuda = None", 0), ("cuda: str = '13.0'", 3), ("hip = '7.0'", 3)])
def test_torch_counts_gpus_if_it_was_built_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: str, gpus: int
) -> None:
    (tmp_path / "version.py").write_text(build)
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("dgpt.watch.runtime.find_spec", lambda name: found)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert launch.visible_gpus() == gpus


def test_this_torch_says_what_it_was_built_for() -> None:
    assert built_for_gpus() == bool(torch.version.cuda or torch.version.hip)


@pytest.mark.parametrize(
    ("processes", "environment", "expected"),
    [(1, {}, False), (2, {}, True), (1, {"NNODES": "2"}, True), (2, {"RANK": "0", "WORLD_SIZE": "2"}, False)],
)
def test_torchrun_is_for_several_processes_that_nobody_has_started(
    monkeypatch: pytest.MonkeyPatch, processes: int, environment: dict[str, str], expected: bool
) -> None:
    for name in ("RANK", "WORLD_SIZE", "NNODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launch.needs_torchrun(processes) is expected
