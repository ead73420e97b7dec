"""One writer for a run folder, whatever happened to the one before."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dgpt.errors import UserError
from dgpt.lease import Holder, Lease

QUICK = {"stale_seconds": 0.6}
HOLD = """
import sys, time
from dgpt.lease import Lease
lease = Lease.take(sys.argv[1], "991", stale_seconds=0.6)
print(lease.epoch, flush=True)
sys.stdin.readline()
print(lease.held(), lease.lost, flush=True)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder; a line to its stdin makes it say whether it still does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.communicate()


def files(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "lock").iterdir())


def left_by(run_dir: Path, holder: Holder, epoch: int = 1) -> Path:
    path = run_dir / "lock" / f"{epoch:08d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(holder)))
    return path


def test_epochs_grow_from_start_to_start(tmp_path):
    for epoch in (1, 2, 3):
        with Lease.take(tmp_path, **QUICK) as lease:
            assert (lease.epoch, lease.held()) == (epoch, True)
            assert files(tmp_path) == [f"{epoch:08d}.json"]
        assert files(tmp_path) == [f"{epoch:08d}.free"]


def test_the_second_of_two_is_refused_and_told_of_the_first(tmp_path, holder):
    with pytest.raises(UserError) as caught:
        Lease.take(tmp_path, **QUICK)
    assert f"is in use by process {holder.pid} on {os.uname().nodename} (job 991), which lived 0 s ago" in str(
        caught.value
    )
    assert "give this run another run_dir" in str(caught.value)
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "True False\n"
    assert files(tmp_path) == ["00000001.json"]


def test_a_dead_process_of_this_machine_is_succeeded_at_once(tmp_path, holder):
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # what is left of it is no sign of life
    before = time.monotonic()
    with Lease.take(tmp_path, stale_seconds=1000) as lease:
        assert lease.epoch == 2
    assert time.monotonic() - before < 100


def test_one_that_wakes_after_it_was_succeeded_knows_that_it_lost(tmp_path, holder, capsys):
    holder.send_signal(signal.SIGSTOP)
    time.sleep(0.2)  # the last sign of life is no longer fresh
    with Lease.take(tmp_path, **QUICK) as lease:
        assert lease.epoch == 2
        assert f"waiting: {tmp_path} is held by process {holder.pid}" in capsys.readouterr().err
        holder.send_signal(signal.SIGCONT)
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "False True\n"
        assert lease.held()


def test_the_holder_finds_out_by_itself(tmp_path):
    lease = Lease.take(tmp_path, **QUICK)
    lease.path.unlink()
    deadline = time.monotonic() + 30
    while not lease.lost and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lease.lost
    lease.release()
    assert files(tmp_path) == []


def test_another_machine_counts_as_dead_after_its_time_and_not_before(tmp_path, capsys):
    left_by(tmp_path, replace(Holder.this("77", 0.6), host="node9", boot="another"))
    before = time.monotonic()
    with Lease.take(tmp_path, **QUICK) as lease:
        assert lease.epoch == 2
    assert time.monotonic() - before > 0.5
    assert "held by process" in (error := capsys.readouterr().err)
    assert "on node9 (job 77); without a sign of life for 0.6 s it counts as dead" in error


def test_what_a_job_left_before_it_was_requeued_is_succeeded_at_once(tmp_path):
    lost = replace(Holder.this("77", 1000.0, requeues=0), host="node9", boot="another")
    left_by(tmp_path, lost)
    for job, requeues in (("77", 0), ("78", 1), ("", 1)):
        assert not lost.precedes(Holder.this(job, 1000.0, requeues))
    assert not replace(lost, job="").precedes(Holder.this("", 1000.0, requeues=1))
    before = time.monotonic()
    with Lease.take(tmp_path, "77", requeues=1, stale_seconds=1000.0) as lease:
        assert lease.epoch == 2
    assert time.monotonic() - before < 100


def test_another_machine_that_gives_a_sign_of_life_is_respected(tmp_path):
    path = left_by(tmp_path, replace(Holder.this("", 0.6), host="node9", boot="another"))
    alive = threading.Timer(0.15, os.utime, (path,))
    alive.start()
    with pytest.raises(UserError, match="in use by process"):
        Lease.take(tmp_path, stale_seconds=30)
    alive.join()


def test_a_pid_that_was_given_to_another_process_is_not_the_holder(tmp_path):
    left_by(tmp_path, replace(Holder.this("", 0.6), started=1))
    with Lease.take(tmp_path, stale_seconds=1000) as lease:
        assert lease.epoch == 2


def test_a_file_that_says_nothing_is_waited_for(tmp_path):
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "00000004.json").write_text("")
    with Lease.take(tmp_path, **QUICK) as lease:
        assert lease.epoch == 5


def test_of_many_at_once_one_gets_it(tmp_path):
    """All find a holder of another machine that is dead, at the same moment."""
    path = left_by(tmp_path, replace(Holder.this("", 0.6), boot="another"))
    os.utime(path, (1, 1))
    got, together = [], threading.Barrier(16)

    def take() -> None:
        together.wait()
        try:
            got.append(Lease.take(tmp_path, stale_seconds=12))
        except UserError as error:
            got.append(error)

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [one for one in got if isinstance(one, Lease)]
    assert (len(got), len(winners)) == (16, 1)
    assert winners[0].held()
    winners[0].release()


def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch):
    """As root nothing is read-only; hence a file in the place of the folder, and a disk that is full."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run_dir = '.*file' cannot be locked: .*Not a directory"):
        Lease.take(tmp_path / "file")
    for number, reason, fix in ((28, "No space left on device", "free space; `dgpt checkpoint prune RUN --dry-run`"),
                                (30, "Read-only file system", "mount the file system for writing"),
                                (5, "Input/output error", "make the folder writable")):  # fmt: skip
        error = OSError(number, reason)
        monkeypatch.setattr("dgpt.lease.json.dump", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(UserError, match=rf"(?s)cannot be locked: .*{reason}.*fix:  {fix}"):
            Lease.take(tmp_path)
        assert files(tmp_path) == []


def test_the_holders_patience_counts_not_the_takers(tmp_path):
    """It breathes slower, and is not dead."""
    path = left_by(tmp_path, replace(Holder.this("", 60.0), boot="another"))
    os.utime(path, (time.time() - 10,) * 2)
    alive = threading.Timer(0.3, os.utime, (path,))
    alive.start()
    with pytest.raises(UserError, match="in use by process"):
        Lease.take(tmp_path, **QUICK)
    alive.join()


def test_an_old_sign_of_life_is_watched_before_it_is_believed(tmp_path):
    """The file server was away for an hour: the holder is about to write again."""
    path = left_by(tmp_path, replace(Holder.this("", 4.0), boot="another"))
    os.utime(path, (time.time() - 3600,) * 2)
    alive = threading.Timer(0.3, os.utime, (path,))
    alive.start()
    with pytest.raises(UserError, match="in use by process"):
        Lease.take(tmp_path, **QUICK)
    alive.join()


def test_a_process_that_is_hidden_from_this_user_is_not_taken_for_dead(tmp_path, monkeypatch):
    """As with /proc mounted with hidepid=2."""
    holder = Holder.this("", 60.0)
    monkeypatch.setattr("dgpt.lease._started", lambda pid: None)
    monkeypatch.setattr("os.kill", lambda pid, signal: (_ for _ in ()).throw(PermissionError))
    assert holder.fate is None
