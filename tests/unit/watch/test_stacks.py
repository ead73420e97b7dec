"""Stacks of processes: by py-spy where it is, by a signal where it is not, and the truth where neither helps."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dgpt.watch.stacks import stacks

PROGRAM = """
import sys, time
from pathlib import Path
from dgpt.watch.heartbeat import Heartbeat, Identity, Patience
Heartbeat(Path(sys.argv[1]), Identity(int(sys.argv[2]), 1, 2, "a", ".", 5.0), Patience(5, 60))
def somewhere():
    print("here", flush=True)
    time.sleep(100)
somewhere()
"""
NO_TOOL = "/bin/false"


@contextmanager
def rank(folder: Path, number: int) -> Iterator[int]:
    """The pid of a rank that sleeps in a function."""
    command = [sys.executable, "-c", PROGRAM, str(folder), str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_ranks_answer_a_signal_and_a_stopped_one_cannot(tmp_path: Path) -> None:
    with rank(tmp_path, 0) as first, rank(tmp_path, 1) as second:
        os.kill(second, signal.SIGSTOP)
        found = stacks(tmp_path, {0: first, 1: second}, {1}, NO_TOOL)
    assert list(found) == [0, 1]
    assert "in somewhere" in found[0]
    assert found[1] == "no stack: py-spy is not here or not allowed, and the process is stopped, so it cannot answer"


def test_py_spy_sees_a_stopped_process(tmp_path: Path) -> None:
    tool = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    assert tool, "it belongs to the extra 'dev'"
    with rank(tmp_path, 0) as first:
        os.kill(first, signal.SIGSTOP)
        found = stacks(tmp_path, {0: first}, {0}, tool)
    if "no stack" not in found[0]:  # ptrace may be forbidden here
        assert "somewhere" in found[0]


def test_a_tool_that_hangs_is_given_up(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\nexec sleep 100\n")
    tool.chmod(0o755)
    with rank(tmp_path, 0) as first:
        assert "in somewhere" in stacks(tmp_path, {0: first}, set(), str(tool))[0]
