"""A rank's signs of life, as its agent reads them; and how long each phase may take."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dgpt.watch.heartbeat import Beat, Heartbeat, Identity, Patience, read

INFINITE = float("inf")


def identity(rank: int, folder: Path, **changes: object) -> Identity:
    return Identity(**{"rank": rank, "pid": os.getpid(), "world_size": 2, "attempt": "a", "run_dir": str(folder),
                       "hang_seconds": 5.0, **changes})  # type: ignore[arg-type]  # fmt: skip


def beats(folder: Path) -> dict[int, Beat]:
    return {identity.rank: beat for identity, beat in read(folder)}


def test_the_agent_reads_what_the_rank_wrote(tmp_path: Path) -> None:
    before = time.time()
    patience = Patience(5, 60)
    heart = Heartbeat(tmp_path, identity(3, tmp_path), patience)
    assert [found for found, _ in read(tmp_path)] == [identity(3, tmp_path)]
    start = beats(tmp_path)[3]
    assert (start.progress, start.step, start.phase, start.patience) == (1, 0, "start", 60)
    patience.first_step(1)
    for phase in ("data", "forward", "data"):
        heart.enter(7, phase)
    heart.alive()
    found = beats(tmp_path)[3]
    assert (found.progress, found.step, found.phase, found.patience) == (4, 7, "data", 5)
    assert found.signs == start.signs + 4
    assert before <= start.time <= found.time <= time.time()
    heart.end()
    assert (beats(tmp_path)[3].phase, beats(tmp_path)[3].patience) == ("end", INFINITE)


def test_a_rank_that_starts_anew_begins_anew(tmp_path: Path) -> None:
    first = Heartbeat(tmp_path, identity(0, tmp_path), Patience(5, 60))
    first.enter(9, "data")
    Heartbeat(tmp_path, identity(0, tmp_path, attempt="b"), Patience(5, 60))
    ((who, beat),) = read(tmp_path)
    assert (who.attempt, beat.phase, beat.step) == ("b", "start", 0)
    first.enter(10, "data")  # into memory that nobody reads any more
    assert beats(tmp_path)[0].phase == "start"


def test_without_an_agent_nothing_is_written(tmp_path: Path, monkeypatch: object) -> None:
    Heartbeat(None, identity(0, tmp_path), Patience(5, 60)).enter(1, "data")
    assert list(tmp_path.iterdir()) == []


def test_a_phase_may_take_long_once_and_a_step_twice_its_time() -> None:
    patience = Patience(90, 600)
    assert {patience.of(phase) for phase in ("start", "data", "forward", "data", "forward", "step")} == {600}
    patience.first_step(20)
    assert [patience.of(phase) for phase in ("data", "forward", "step")] == [90, 90, 90]
    assert [patience.of(phase) for phase in ("evaluate", "evaluate", "data", "evaluate")] == [600, 600, 90, 90]
    patience.first_step(200)
    assert [patience.of(phase) for phase in ("data", "checkpoint", "data", "checkpoint")] == [400, 600, 400, 400]


def test_nobody_watches_with_hang_seconds_zero() -> None:
    patience = Patience(0, 600)
    assert [patience.of("start"), patience.of("data"), patience.of("data")] == [INFINITE] * 3


def test_the_stack_of_a_rank_comes_by_signal(tmp_path: Path) -> None:
    program = ("import sys, time\nfrom pathlib import Path\nfrom dgpt.watch.heartbeat import *\n"
               "Heartbeat(Path(sys.argv[1]), Identity(0, 1, 1, 'a', '.', 5.0), Patience(5, 60))\n"
               "def somewhere(): print('here', flush=True); time.sleep(60)\nsomewhere()")  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + 30
        while "in somewhere" not in (tmp_path / "rank_0.stack").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
