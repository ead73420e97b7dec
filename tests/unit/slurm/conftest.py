"""Commands of Slurm that say what a test wants and write down how they were called."""

from collections.abc import Callable
from pathlib import Path

import pytest

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
