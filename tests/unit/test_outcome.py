"""How a process ends by itself and as a worker, and which rank the agent blames."""

import copy
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dgpt import outcome, runtime
from dgpt.agent.node import first_failure, hung, judge
from dgpt.errors import StorageError, TrainingError, UserError
from dgpt.watch.hang import Hang
from dgpt.watch.runtime import AGENT_PID


def mistake() -> int:
    raise UserError("size = 3", rule="even", fix="2")


def no_loss() -> int:
    raise TrainingError("loss is nan at step 7")


def crash() -> int:
    raise ZeroDivisionError("by zero")


def interrupt() -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (lambda: 0, 0, ""),
        (lambda: outcome.STOPPED, 75, ""),
        (mistake, 2, "dgpt: size = 3\n  rule: even\n  fix:  2\n"),
        (no_loss, 1, "dgpt: loss is nan at step 7\n"),
        (interrupt, 130, ""),
    ],
)
def test_a_process_alone_prints_a_mistake_and_returns_the_code(
    body: Any, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome.guard(body) == code
    assert capsys.readouterr().err == message


def test_a_disk_that_fails_is_said_without_a_trace_and_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise StorageError("a file cannot be read", rule="disks work", fix="mend it")

    assert outcome.guard(body) == outcome.FAILED
    assert capsys.readouterr().err == "dgpt: a file cannot be read\n  rule: disks work\n  fix:  mend it\n"
    assert isinstance(copy.copy(StorageError("a", rule="b", fix="c")), StorageError)  # as between processes


def test_a_full_disk_does_not_change_how_an_agent_or_rank_ends() -> None:
    code = "import sys; from dgpt.outcome import leave; sys.stderr.write('x'); print('x'); leave(75)"
    with open("/dev/full", "w") as full:
        environment = {**os.environ, AGENT_PID: "1", "PYTHONUNBUFFERED": ""}
        assert subprocess.run([sys.executable, "-c", code], stdout=full, env=environment, check=False).returncode == 75


def test_a_crash_alone_prints_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome.guard(crash) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("Traceback")
    assert errors.rstrip().endswith("ZeroDivisionError: by zero")


def test_a_reader_that_goes_away_is_no_failure() -> None:
    """As in `dgpt checkpoint show RUN | head -1`."""
    program = "import sys; from dgpt import outcome; sys.exit(outcome.guard(lambda: print('x' * 100000) or 0))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == outcome.READER_GONE


def test_a_worker_reports_instead_and_a_stop_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "run" / "attempt_0" / "1"
    log.mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(log / "error.json"))
    monkeypatch.setenv(runtime.AGENT_PID, "1")
    monkeypatch.setenv("RANK", "5")
    assert outcome.guard(mistake) == 2
    assert outcome.read_reports(tmp_path)[5].message.startswith("dgpt: size = 3")
    assert outcome.guard(lambda: outcome.STOPPED) == 0
    assert outcome.read_reports(tmp_path)[5].exit_code == 75
    assert capsys.readouterr().err == ""


def test_reports_of_an_earlier_attempt_do_not_count(tmp_path: Path) -> None:
    for attempt in (9, 10):
        folder = tmp_path / "run" / f"attempt_{attempt}" / "0"
        folder.mkdir(parents=True)
        report = {"rank": 0, "exit_code": attempt, "message": "", "time": 0.0, "timestamp": 0}
        (folder / "error.json").write_text(json.dumps(report))
    assert outcome.read_reports(tmp_path)[0].exit_code == 10


@pytest.mark.parametrize(
    ("codes", "times", "first"),
    [
        ({0: 1, 1: 1}, {0: 10.5, 1: 10.2}, 1),  # the earlier report
        ({0: 1, 1: -signal.SIGKILL}, {0: 10.1}, 1),  # killed at 10.0, noticed at 10 by torchrun's clock, no report
        ({0: 1, 1: -signal.SIGKILL}, {0: -20.0}, 0),  # hung after the failure of 0, killed 30 seconds later
        ({0: -signal.SIGTERM, 1: 1}, {1: 11.0}, 1),  # ended by torchrun because of 1
    ],
)
def test_the_first_failure_is_the_one_that_brought_the_others_down(
    codes: dict[int, int], times: dict[int, float], first: int
) -> None:
    failures: Any = {rank: SimpleNamespace(exitcode=code, timestamp=10) for rank, code in codes.items()}
    reports = {rank: outcome.Report(rank, codes[rank], "", time, int(time)) for rank, time in times.items()}
    assert first_failure(failures, reports) == first


@pytest.mark.parametrize(
    ("codes", "shown"),
    [
        ({0: -signal.SIGTERM, 1: 2}, "dgpt: size = 3\n  rule: even\n"),  # rank 0 was ended before it could report
        ({4: 2, 5: 2}, f"{socket.gethostname()}: dgpt: size = 3\n"),  # the first node prints the rest
    ],
)
def test_only_the_first_node_prints_all_of_a_mistake(
    codes: dict[int, int], shown: str
) -> None:  # fmt: skip
    failures: Any = {rank: SimpleNamespace(exitcode=code, timestamp=10) for rank, code in codes.items()}
    reports = {
        rank: outcome.Report(rank, code, "dgpt: size = 3\n  rule: even", 10.0, 10)
        for rank, code in codes.items()
        if code == outcome.MISTAKE
    }
    verdict = judge(failures, reports, [])
    assert (verdict.exit_code, verdict.text + "\n") == (outcome.MISTAKE, shown)


def test_killed_rank_is_named_with_its_signal() -> None:
    killed: Any = SimpleNamespace(exitcode=-9, timestamp=10, pid=123, signal_name=lambda: "SIGKILL")
    verdict = judge({3: killed}, {}, [])
    assert verdict.exit_code == outcome.FAILED
    assert verdict.text == f"dgpt: rank 3 on {socket.gethostname()} (process 123) was killed by SIGKILL"
    assert verdict.time == 8  # noticed at 10, and torchrun looks only now and then


def test_an_end_of_all_ranks_together_is_no_failure_of_one() -> None:
    """A loss that is not finite, or a parity that fails: the message says all."""
    failures: Any = {rank: SimpleNamespace(exitcode=1, timestamp=10, pid=rank) for rank in (0, 1)}
    reports = {rank: outcome.Report(rank, 1, "dgpt: not equal", 10.0 - rank, 10, final=True) for rank in failures}
    verdict = judge(failures, reports, [])
    assert (verdict.exit_code, verdict.text, verdict.final) == (outcome.FAILED, "dgpt: not equal", True)


LINGERING = """
import os, sys, threading, time
from dgpt import outcome
threading.Thread(target=time.sleep, args=(1000,)).start()  # not a daemon: Python waits for it
outcome.LAST_SECONDS = 0.5
print("done")
outcome.leave(75)
"""


@pytest.mark.parametrize("launched", [False, True])
def test_a_thread_that_hangs_keeps_no_process(launched: bool) -> None:
    agent = {runtime.AGENT_PID: str(os.getpid())} if launched else {}
    environment = {**os.environ, **agent}
    done = subprocess.run([sys.executable, "-c", LINGERING], env=environment, capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (75, "done\n")


def test_a_hang_is_told_alike_by_all_agents_with_the_stack_where_there_is_one() -> None:
    found = Hang("dgpt: hang: rank 3 on n1", "n1", (3,), 7.0)
    own: list[dict[int, str]] = [{rank: f"stack of {rank}" for rank in ranks} for ranks in ((0, 1), (2, 3))]
    watches: list[Any] = [SimpleNamespace(hang=found, since=100.0, own_stacks=stacks) for stacks in own]
    away, near = map(hung, watches)
    assert (away.text, near.text) == (found.text, f"stack of 3\n{found.text}")
    assert (away.node, away.exit_code, away.final) == (near.node, near.exit_code, near.final) == ("n1", 1, False)
    assert near.time < away.time, "so that it counts as the first failure"
