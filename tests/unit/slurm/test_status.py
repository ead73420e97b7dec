"""`dgpt status`, `logs`, `stop` and `save`: what they say in each state of a run, with and without Slurm."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dgpt import lease
from dgpt.cli import main
from dgpt.config import SlurmConfig, load_config, to_toml
from dgpt.lease import Holder, Lease
from dgpt.outcome import DONE, MISTAKE
from dgpt.slurm import reasons
from dgpt.slurm.events import Event, record
from dgpt.slurm.status import Facts, describe, gather
from dgpt.watch.board import Board
from dgpt.watch.hang import Seen

NOW = 1_800_000_000.0
ELSEWHERE = Holder("node7", "another boot", 42, 1, "12", 60.0)
ROW = {"step": 1200.0, "time": NOW - 5, "loss/train": 3.25, "speed/tokens_per_second": 12345.0,
       "speed/seconds_per_step": 2.0}  # fmt: skip
RUNNING = {"JobId": "12", "JobState": "RUNNING", "NumNodes": "2", "NodeList": "n[0-1]", "RunTime": "00:10:00",
           "TimeLimit": "01:00:00", "EndTime": datetime.fromtimestamp(NOW + 3000).isoformat()}  # fmt: skip
START = Event(NOW - 900, "start", "12", "c", 0, ("n0",), 0)
SIGNAL = Event(NOW - 700, "signal", "12", "c", 0, ("n0",), 0, "scancel")
STOP = Event(NOW - 600, "stop", "12", "c", 0, ("n0",), 800, "the time limit comes (SIGUSR1), saved", 75)


def told(**known: object) -> dict[str, str]:
    values: dict[str, Any] = {
        "run_dir": "runs/a", "now": NOW, "total_steps": 2000, "slurm": SlurmConfig(), "history": [START],
        "job": {}, "holder": None, "row": ROW, "validation": {"step": 1000.0, "loss/validation": 3.5},
        "checkpoint": (1000, NOW - 60),
    }  # fmt: skip
    return dict(describe(Facts(**{**values, **known})))


def test_a_running_job() -> None:
    lines = told(job=RUNNING, history=[START, STOP, Event(NOW - 500, "start", "12", "c", 1, ("n0",), 800)])
    assert lines["state"] == "running: job 12, 2 nodes n[0-1], 00:10:00 of 01:00:00"
    assert lines["step"] == "1,200 of 2,000 (60.0%)"
    assert lines["loss"] == "3.2500; validation 3.5000 at step 1,000"
    assert lines["speed"] == "12,345 tokens/s, 0:00:05 ago"
    assert lines["saved"] == "step 1,000, 0:01:00 ago"
    assert lines["ETA"] == "0:26:40 of training for the rest; the job ends in 0:50:00: this job is long enough"
    assert lines["restarts"] == "1"
    assert lines[""].endswith("job 12, start 0, step 800: the time limit comes (SIGUSR1), saved")


def test_a_job_that_is_too_short_goes_on_in_another() -> None:
    soon = {**RUNNING, "EndTime": datetime.fromtimestamp(NOW + 300).isoformat()}
    assert told(job=soon)["ETA"].endswith("the job ends in 0:05:00: it goes on in another job")


def test_a_running_job_whose_ranks_are_silent() -> None:
    assert "its node may be lost" in told(job=RUNNING, holder=(ELSEWHERE, 300.0))["help"]
    assert "help" not in told(job=RUNNING, holder=(ELSEWHERE, 5.0))


def test_a_waiting_job_says_why_and_what_would_help() -> None:
    lines = told(job={"JobId": "13", "JobState": "PENDING", "Reason": "BeginTime", "NumNodes": "2"})
    assert lines["state"].startswith("waiting: job 13, 2 nodes: it was requeued")
    assert "scontrol update JobId=13 StartTime=now" in lines["help"]


@pytest.mark.parametrize(
    ("reason", "meaning", "help_"),
    [
        ("Priority", "higher priority", "fewer --nodes"),
        ("DependencyNeverSatisfied", "has failed or gone", "scancel 5"),
        ("ReqNodeNotAvail, UnavailableNodes:n[0-3]", "down, drained or reserved", "--constraint"),
        ("QOSMaxGRESPerUser", "limit of the QOS for each", "another --qos"),
        ("AssocGrpGRESMinutes", "limit of your account", "another --account"),
        ("launch failed requeued held", "could not be started", "scontrol release 5"),
        ("SomethingNew", "Slurm says 'SomethingNew'", "scontrol show job 5"),
    ],
)
def test_reasons_in_plain_words(reason: str, meaning: str, help_: str) -> None:
    said = reasons.waiting(reason, "5")
    assert meaning in said[0]
    assert help_ in said[1]


@pytest.mark.parametrize(
    ("known", "state"),
    [
        ({"history": [START, STOP]}, "stopped: the time limit comes (SIGUSR1), saved"),
        ({"history": [START, Event(NOW, "stop", "12", "c", 0, (), 2000, "finished", 0)]}, "finished: step 1000"),
        ({"checkpoint": (2000, NOW)}, "finished: step 2000"),
        ({"holder": (ELSEWHERE, 5.0)}, "running: process 42 on node7 (job 12), last sign of life 0:00:05 ago"),
        ({"holder": (ELSEWHERE, 500.0)}, "dead: process 42 on node7 (job 12) gave no sign of life for 0:08:20"),
        ({"job": {"JobId": "12", "JobState": "NODE_FAIL"}}, "ended: job 12 is NODE_FAIL (without a word)"),
        (
            {"job": {"JobId": "12", "JobState": "CANCELLED"}, "history": [START, SIGNAL]},
            "ended: job 12 is CANCELLED (scancel)",
        ),
        ({"history": []}, "not running"),
        ({"history": [], "total_steps": 0, "checkpoint": None}, "never started"),
    ],
)
def test_states_without_a_running_job(known: dict[str, object], state: str) -> None:
    assert told(**known)["state"] == state


def test_what_killed_a_job_is_said_with_what_to_do() -> None:
    assert "--mem=0" in told(job={"JobId": "12", "JobState": "OUT_OF_MEMORY"})["killed"]
    assert "--signal-lead" in told(job={"JobId": "12", "JobState": "TIMEOUT"})["killed"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder on a machine without Slurm."""
    monkeypatch.setenv("PATH", "/nowhere")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text(to_toml(load_config(None, ["training.steps=2000"])))
    rows = [{**ROW, "step": 1190}, ROW, {"step": 1200, "loss/validation": 3.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 12')
    (folder / "checkpoints/step_00001000").mkdir(parents=True)
    (folder / "checkpoints/step_00001000/manifest.json").touch()
    record(folder, START)
    return folder


def test_a_run_folder_tells_without_slurm(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = gather(run)
    assert facts.checkpoint is not None
    assert (facts.row["step"], facts.validation["loss/validation"], facts.checkpoint[0]) == (1200, 3.5, 1000)
    assert main(["status", str(run)]) == DONE
    assert "state     not running\n" in capsys.readouterr().out


def test_the_holder_of_a_folder_is_seen_without_changing_anything(run: Path) -> None:
    assert lease.holder(run) is None
    with Lease.take(run, "12"):
        before = sorted((run / "lock").iterdir())
        found = lease.holder(run)
        assert found is not None
        assert (found[0].job, found[0].fate) == ("12", True)
        assert 0 <= found[1] < 30
        assert sorted((run / "lock").iterdir()) == before
        assert dict(describe(gather(run)))["state"].startswith("running: process ")
    assert lease.holder(run) is None


@pytest.mark.parametrize("verb", ["stop", "save"])
def test_only_what_runs_can_be_asked(run: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([verb, str(run)]) == MISTAKE
    assert f"nothing runs in '{run}'" in capsys.readouterr().err
    assert not (run / verb).exists()
    with Lease.take(run):
        assert main([verb, str(run)]) == DONE
    assert (run / verb).exists()


def test_stop_cancels_a_job_that_waits(run: Path, fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake("scontrol", "echo 'JobId=12 JobState=PENDING Reason=Priority NumNodes=2'")
    cancelled = fake("scancel", "")
    assert main(["stop", str(run)]) == DONE
    assert cancelled() == ["12"]
    assert not (run / "stop").exists()


def test_stop_cancels_a_chain_that_waits_from_its_end(run: Path, fake, capsys: pytest.CaptureFixture[str]) -> None:
    """The end of a job lets the next one of its chain start."""
    for number in ("13", "14", "15"):
        record(run, Event(NOW, "submit", number, "d", 0, (), 0))
    says = 'echo "JobId=$4 JobState=$s Reason=$r"'
    fake("scontrol", f"s=PENDING; r=Priority; [[ $4 -gt 13 ]] && r=Dependency; [[ $4 == 12 ]] && s=FAILED; {says}")
    cancelled = fake("scancel", "[[ $1 != 14 ]]")  # somebody was quicker
    assert main(["stop", str(run)]) == DONE
    assert cancelled() == ["15", "14", "13"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == MISTAKE
    assert "is no run folder" in capsys.readouterr().err
    assert main(["logs", str(tmp_path)]) == MISTAKE
    assert "has no logs" in capsys.readouterr().err


def test_logs_of_all_nodes_or_of_one_rank(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for start, node, text in (
        (0, "n0", "old\n"),
        (10, "n0", "[rank 0] a\nagent\n"),
        (10, "n1", "[rank 2] b\n[rank 2] to"),
    ):
        folder = run / "logs" / f"restart_{start}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{node}.log").write_text(text)
    assert main(["logs", str(run)]) == DONE
    assert capsys.readouterr().out == "n0: [rank 0] a\nn0: agent\nn1: [rank 2] b\n"
    assert main(["logs", str(run), "--rank", "2"]) == DONE
    assert capsys.readouterr().out == "n1: [rank 2] b\n"
    assert main(["logs", str(run), "--restart", "0", "--follow"]) == DONE  # nothing runs that could go on
    assert capsys.readouterr().out == "n0: old\n"
    assert main(["logs", str(run), "--restart", "5"]) == MISTAKE


def test_a_look_at_the_status_is_quick_it_imports_no_torch(run: Path) -> None:
    import subprocess
    import sys

    code = "import sys; from dgpt.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code, "status", str(run)], check=True, capture_output=True)
    assert time.monotonic() - began < 20


def test_a_slow_rank_is_named_with_its_node(tmp_path: Path) -> None:
    slow = {"step": 5, "straggler/rank": 5, "straggler/slowdown": 1.8, "straggler/cost_percent": 20.0}
    (tmp_path / "config.toml").write_text(to_toml(load_config(None)))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (slow, slow)))
    assert "slow" not in dict(describe(gather(tmp_path)))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (slow, slow, slow)))
    Board(str(tmp_path), "a", 4).write([Seen(5, "n3", 1, 5, "data", 9, 5.0, 0.1, 0.1, "running")])
    text = dict(describe(gather(tmp_path)))["slow"]
    assert text == "n3 (rank 5) is 1.8 x slower than the median before the gradients are summed"
