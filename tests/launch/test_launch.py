"""launch/torchrun.sh, dgpt.launch and dgpt.agent with real processes: what comes out, and that nothing stays behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from launch_worker import HANG_SECONDS

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("launch_worker.py")
SCRIPT = ["bash", str(ROOT / "launch" / "torchrun.sh")]
LAUNCH = [sys.executable, "-c", "import sys; from dgpt.launch import launch; launch(sys.argv[1:], 2)"]
DEADLINE_SECONDS = 90


@contextmanager
def started(command: list[str], mode: str, folder: Path, **settings: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder), **settings}
    process = subprocess.Popen(
        [*command, str(WORKER), mode, str(folder)], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()  # its workers go with it
        process.communicate()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, errors


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers(folder: Path, count: int = 2) -> list[int]:
    """Process ids of the ranks, once all of them are in their loop."""
    files = [folder / f"rank_{rank}" for rank in range(count)]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text().split()[0]) for file in files]


def processes_of_workers(agent: int) -> list[psutil.Process]:
    """The children of the agent that already run the worker's script, whatever they have got to in it."""
    try:
        return [child for child in psutil.Process(agent).children() if str(WORKER) in child.cmdline()]
    except psutil.Error:  # one ended while it was looked at
        return []


def test_finished_run_exits_0_and_leaves_no_files(tmp_path: Path) -> None:
    with started(SCRIPT, "finish", tmp_path, NPROC_PER_NODE="2") as process:
        assert end(process) == (0, "")
    assert {file.name: file.read_text().split()[1] for file in tmp_path.iterdir()} == {"rank_0": "2", "rank_1": "2"}


def test_mistake_of_the_user_is_printed_once_without_a_trace(tmp_path: Path) -> None:
    with started(SCRIPT, "mistake", tmp_path, NPROC_PER_NODE="2") as process:
        assert end(process) == (2, "dgpt: size = 3 is odd\n  rule: size is even\n  fix:  set size to 2 or 4\n")


def test_crash_of_a_rank_is_told_last(tmp_path: Path) -> None:
    with started(SCRIPT, "crash", tmp_path, NPROC_PER_NODE="2") as process:
        code, errors = end(process)
    assert code == 1
    assert errors.count("Traceback") == 1
    *_, exception, last = errors.splitlines()
    assert exception == "ZeroDivisionError: the worker of rank 1 divided by zero"
    assert last.startswith("dgpt: rank 1 on ")
    assert last.endswith(" failed, exit code 1; ranks 0 ended after it")


def test_signals_to_the_launcher_stop_all_ranks_at_one_step_after_the_save(tmp_path: Path) -> None:
    with started(LAUNCH, "loop", tmp_path) as process:
        workers(tmp_path)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.05)
        assert end(process) == (75, "")
    saved = {(tmp_path / f"saved_{rank}").read_text() for rank in (0, 1)}
    assert len(saved) == 1


def test_signal_before_the_workers_listen_ends_the_run(tmp_path: Path) -> None:
    with started(SCRIPT, "loop", tmp_path, NPROC_PER_NODE="2") as process:
        wait_for(lambda: len(processes_of_workers(process.pid)) == 2)
        process.send_signal(signal.SIGTERM)
        assert end(process) == (143, "dgpt: SIGTERM ended the workers before they could save\n")


def test_killed_launcher_leaves_no_worker(tmp_path: Path) -> None:
    with started(SCRIPT, "loop", tmp_path, NPROC_PER_NODE="2") as process:
        pids = workers(tmp_path)
        process.kill()
        wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_killed_rank_is_started_again_where_restarts_are_allowed(tmp_path: Path) -> None:
    with started(SCRIPT, "killed once", tmp_path, NPROC_PER_NODE="2", MAX_RESTARTS="1") as process:
        code, said = end(process)
    assert code == 0, said


def test_a_stopped_rank_is_named_within_ten_seconds_and_the_run_ends(tmp_path: Path) -> None:
    with started(SCRIPT, "loop", tmp_path, NPROC_PER_NODE="2") as process:
        stopped = workers(tmp_path)[1]
        os.kill(stopped, signal.SIGSTOP)
        fault = time.monotonic()
        code, errors = end(process)
    assert time.monotonic() - fault < 10
    assert code == 1
    *_, last = errors.splitlines()
    assert re.fullmatch(rf"dgpt: hang: rank 1 on \S+ \(process {stopped}\) has stood in '(data|step)' of step \d+ for "
                        r"\d s: its process is stopped \(SIGSTOP\); 1 rank waits for it", last), errors  # fmt: skip
    assert "[rank 0] " in errors


def test_a_stall_of_a_node_is_no_hang(tmp_path: Path) -> None:
    """Of its agent, too: it counts the time in which it looked."""
    with started(SCRIPT, "loop", tmp_path, NPROC_PER_NODE="2") as process:
        node = [*workers(tmp_path), process.pid]
        for pid in node:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2 * HANG_SECONDS)
        for pid in node:
            os.kill(pid, signal.SIGCONT)
        seen = (tmp_path / "rank_0").stat().st_mtime
        wait_for(lambda: (tmp_path / "rank_0").stat().st_mtime > seen + HANG_SECONDS)
        process.send_signal(signal.SIGTERM)
        assert end(process) == (75, "")


@contextmanager
def two_nodes(folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Of a rank each, once both are in their loop."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    cluster = {"NNODES": "2", "NPROC_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
               "NODE_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(started(SCRIPT, "loop", folder, **cluster, NODE_RANK=str(rank))) for rank in (0, 1)
        ]
        workers(folder)
        yield nodes


def test_two_nodes_reduce_together_and_a_signal_to_one_stops_both(tmp_path: Path) -> None:
    with two_nodes(tmp_path) as nodes:
        assert (tmp_path / "rank_0").read_text().split()[1] == "2"
        nodes[1].send_signal(signal.SIGTERM)
        assert [end(node)[0] for node in nodes] == [75, 75]


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["gone", "silent"])
def test_a_node_says_how_its_rank_ended_though_the_first_node_does_not_answer(
    tmp_path: Path, fault: signal.Signals
) -> None:
    with two_nodes(tmp_path) as (first, second):
        (rank,) = psutil.Process(second.pid).children()
        rank.suspend()  # it shall not see that the other has gone
        first.send_signal(fault)
        time.sleep(1)  # in which the agent looks ten times at its rank, and at nothing else
        rank.kill()
        killed = time.monotonic()
        code, errors = end(second)
    assert time.monotonic() - killed < 20
    assert code == 1
    *_, last = errors.splitlines()
    assert re.fullmatch(rf"dgpt: rank 1 on \S+ \(process {rank.pid}\) was killed by SIGKILL", last), errors


@pytest.mark.parametrize(("missing", "name"), [({"NODE_RANK": "0"}, "MASTER_ADDR"), ({}, "NODE_RANK")])
def test_several_nodes_need_their_rank_and_the_address_of_the_first(missing: dict[str, str], name: str) -> None:
    environment = {"PATH": os.environ["PATH"], "NNODES": "2", "NPROC_PER_NODE": "1", **missing}
    done = subprocess.run([*SCRIPT, "none.py"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"NNODES > 1 needs {name}" in done.stderr
