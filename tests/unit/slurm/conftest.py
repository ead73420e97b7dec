"""Commands of Slurm that say what a test wants and write down how they were called."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # so that the tests can import the batch script by name

from batches import MAIN, SCONTROL, SRUN, Batch

FakeSlurm = Callable[..., Callable[[], list[str]]]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """fake(name, script) puts a command of that name on PATH; returns what gives the lines of its calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def add(name: str, script: str) -> Callable[[], list[str]]:
        calls = folder / f"{name}.calls"
        calls.touch()
        path = folder / name
        path.write_text(f'#!/bin/bash\necho "$@" >>{calls}\n{script}\n')
        path.chmod(0o755)
        return lambda: calls.read_text().splitlines()

    return add


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeSlurm) -> Batch:
    """batch(*plan) starts the batch script of job 12 in an empty folder."""
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text('run_dir = "run"\nslurm.preflight = false\n')
    Path("script").write_text("#!/bin/bash\n")
    fake("scontrol", SCONTROL)
    fake("srun", SRUN)

    def start(*plan: str, **variables: str) -> "subprocess.Popen[str]":
        Path("plan").write_text("\n".join(plan) + "\n")
        given = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[0-1]", "SLURMD_NODENAME": "n0", **variables}
        command = [sys.executable, "-c", MAIN, "script", "pretrain", "run.toml"]
        return subprocess.Popen(command, env={**os.environ, **given}, stdout=subprocess.PIPE, text=True)

    return start
