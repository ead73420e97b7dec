"""A forked worker, as torchrun sees it."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import IO, Any

import psutil
import pytest
import torch
from torch.distributed import run as torchrun

from dgpt import __version__
from dgpt.agent import forked, node
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


def test_a_killed_one_leaves_its_last_words(monkeypatch: pytest.MonkeyPatch, output: IO[str]) -> None:
    def die(arguments: Sequence[str]) -> int:
        print("half a li", end="")
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    monkeypatch.setattr(forked, "main", die)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    assert Worker([], ENVIRONMENT, output, None).wait(60) == -signal.SIGKILL
    assert Path(output.name).read_text() == "half a li"


def test_a_signal_to_a_new_worker_is_not_handled_as_by_the_agent(
    monkeypatch: pytest.MonkeyPatch, output: IO[str]
) -> None:
    monkeypatch.setattr(forked, "main", lambda arguments: signal.pause() or 0)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(99))
    try:
        for _ in range(20):
            worker = Worker([], ENVIRONMENT, output, output)
            os.kill(worker.pid, signal.SIGTERM)
            assert worker.wait(20) == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
        worker._process.kill()  # one that has lost its signal would keep this process at its end


def test_the_agent_asks_for_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def touch() -> bool:
        raise AssertionError("the fork is spoilt")

    launched: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", touch)
    monkeypatch.setattr(node, "elastic_launch", lambda config, _: lambda *command: launched.extend((config, *command)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun would set it, with a warning
    node.launch(
        torchrun.parse_args(["--nproc-per-node", "2", "--rdzv-endpoint", "127.0.0.1:0", "-m", "dgpt.cli", "x"]), []
    )
    assert launched[0].nproc_per_node == 2
    assert launched[1:] == ["-u", "-m", "dgpt.cli", "x"]


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
    started: list[Any] = []
    with forking(started):
        from torch.distributed.elastic.multiprocessing import api

        handlers = [api.get_subprocess_handler(sys.executable, (*command, "--version"), {}, None, None, 0, None)  # type: ignore[attr-defined]
                    for command in (COMMAND, ())]  # fmt: skip
    assert [type(handler) for handler in handlers] == [ForkedHandler, ForkedHandler]
    assert [isinstance(handler.proc, Popen) for handler in handlers] == [False, True]
    assert [handler.proc.wait(60) for handler in handlers] == [0, 0]
    assert started == handlers
