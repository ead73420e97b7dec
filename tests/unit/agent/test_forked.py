"""A forked worker, as torchrun sees it."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import IO

import psutil
import pytest
import torch

from dgpt import __version__
from dgpt.agent import forked
from dgpt.agent.forked import COMMAND, ForkedHandler, Worker, forking

ENVIRONMENT = {**os.environ, "RANK": "5"}
STARTED = "import os\nopen(os.environ['STARTED'], 'w').close()\n"  # by every new Python


@pytest.fixture
def output(tmp_path: Path) -> Iterator[IO[str]]:
    with open(tmp_path / "output", "w") as file:
        yield file


def test_it_is_the_command_in_its_environment_and_its_output(output: IO[str]) -> None:
    worker = Worker(["--version"], ENVIRONMENT, output, None)
    assert (worker.wait(60), worker.poll()) == (0, 0)
    assert Path(output.name).read_text() == f"dgpt {__version__}\n"


def test_a_mistake_has_its_exit_code(output: IO[str]) -> None:
    assert Worker(["no-such-verb"], ENVIRONMENT, None, output).wait(60) == 2
    assert "no-such-verb" in Path(output.name).read_text()


def test_it_has_a_name_and_a_group_of_its_own_and_dies_of_signals(
    monkeypatch: pytest.MonkeyPatch, output: IO[str]
) -> None:
    monkeypatch.setattr(forked, "main", lambda arguments: signal.pause() or 0)
    worker = Worker([], ENVIRONMENT, output, output)
    with pytest.raises(TimeoutExpired):
        worker.wait(0.5)
    assert worker.poll() is None
    assert (os.getpgid(worker.pid), psutil.Process(worker.pid).name()) == (worker.pid, "dgpt rank 5")
    os.killpg(worker.pid, signal.SIGTERM)
    assert worker.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize("poisoned", [False, True])
def test_a_fork_that_cannot_use_gpus_becomes_a_new_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: IO[str], poisoned: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: poisoned)
    (tmp_path / "sitecustomize.py").write_text(STARTED)
    env = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path), "STARTED": str(tmp_path / "started")}
    assert Worker(["--version"], env, output, None).wait(60) == 0
    assert Path(output.name).read_text() == f"dgpt {__version__}\n"
    assert (tmp_path / "started").exists() is poisoned


def test_other_commands_are_started_as_torchrun_starts_them() -> None:
    with forking():
        from torch.distributed.elastic.multiprocessing import api

        handlers = [api.get_subprocess_handler(sys.executable, (*command, "--version"), {}, None, None, 0, None)  # type: ignore[attr-defined]
                    for command in (COMMAND, ())]  # fmt: skip
    assert [type(handler) for handler in handlers] == [ForkedHandler, ForkedHandler]
    assert [isinstance(handler.proc, Popen) for handler in handlers] == [False, True]
    assert [handler.proc.wait(60) for handler in handlers] == [0, 0]
