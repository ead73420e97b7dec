"""A batch script's decisions carried out, with commands of Slurm that do as a test says."""

import json
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from batches import SRUN, Batch, end, told

from dgpt.errors import UserError
from dgpt.outcome import DONE, FAILED, MISTAKE, STOPPED
from dgpt.slurm.events import Event, history, record


def test_a_run_to_its_end(batch: Batch) -> None:
    code, out = end(batch("100 0 0"))
    assert code == DONE
    assert "start 0 of run, job 12, from step 0, on n0 (127.0.0.1), n1 (127.0.0.1)" in out
    assert told() == [("start", 0, 0, None), ("stop", 0, 100, DONE)]
    assert Path("run/slurm/job_12.sbatch").read_text() == "#!/bin/bash\n"


def test_a_failure_starts_again_in_the_allocation_and_meets_elsewhere(batch: Batch) -> None:
    code, out = end(batch("40 1 0 dgpt: rank 1 was killed", "100 0 0"))
    assert code == DONE
    assert "rank 1 was killed; all nodes answer; starting again" in out
    assert told() == [("start", 0, 0, None), ("stop", 0, 40, FAILED), ("start", 1, 40, None), ("stop", 1, 100, DONE)]
    first, second = Path("met").read_text().splitlines()
    assert first != second


def test_without_progress_it_is_requeued_and_then_gives_up(batch: Batch, tmp_path: Path) -> None:
    plan = ["0 1 0 dgpt: no"] * 3
    code, out = end(batch(*plan))
    assert code == FAILED
    assert "requeue 12" in (tmp_path / "bin/scontrol.calls").read_text()
    code, out = end(batch(*plan, SLURM_RESTART_COUNT="1"))
    assert code == FAILED
    assert out.rstrip().endswith("no; no new checkpoint in 3 starts in a row, so it gives up")
    assert [event.ends_chain for event in history(Path("run")) if event.event == "stop"] == [False, False, True]
    code, out = end(batch(*plan, SLURM_RESTART_COUNT="2"))  # Slurm, or somebody, requeues it nevertheless
    assert code == FAILED
    assert Path("plan.n").read_text() == "3\n", "no further start"


def test_a_signal_goes_to_srun_and_a_save_is_followed_by_a_requeue(batch: Batch, tmp_path: Path) -> None:
    process = batch("40 1 30")
    while not Path("met").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
    code, out = end(process)
    assert code == STOPPED
    assert "the time limit comes (SIGUSR1), saved" in out
    assert "requeue 12" in (tmp_path / "bin/scontrol.calls").read_text()
    assert (told()[0], told()[-1]) == (("start", 0, 0, None), ("stop", 0, 40, STOPPED))


def test_what_fails_during_a_save_is_shown(batch: Batch, fake: Any) -> None:
    fake("srun", SRUN.replace("code=75", "code=1").replace("== 75", "== 1"))
    process = batch("40 0 30 OSError: No space left on device")
    while not Path("met").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGUSR1)
    code, out = end(process)
    assert code == FAILED
    assert "what failed first:\nOSError: No space left on device\n" in out
    assert history(Path("run"))[-1].reason.endswith("before the ranks could save: OSError: No space left on device")


def test_a_job_that_is_ended_before_its_ranks_could_save_blames_no_node(batch: Batch) -> None:
    """Of which nothing is heard then."""
    process = batch("0 1 30")
    while not Path("met").exists():
        time.sleep(0.05)
    (srun,) = psutil.Process(process.pid).children()
    srun.suspend()
    process.send_signal(signal.SIGTERM)
    srun.kill()
    assert end(process)[0] == FAILED
    stop = history(Path("run"))[-1]
    assert (stop.event, stop.code, stop.suspects) == ("stop", FAILED, ())


def test_a_stop_that_slurm_did_not_ask_for_ends_the_chain(batch: Batch, tmp_path: Path, fake: Any) -> None:
    Path("run").mkdir()
    for job in ("12", "13"):
        record(Path("run"), Event(1.0, "submit", job, "c", 0, (), 0))
    cancelled = fake("scancel", "")
    code, _ = end(batch("40 75 0", DGPT_CHAIN="c"))
    assert code == STOPPED
    assert cancelled() == ["13"]
    assert "requeue" not in (tmp_path / "bin/scontrol.calls").read_text()
    code, out = end(batch("50 0 0", DGPT_CHAIN="c", SLURM_JOB_ID="13"))  # should it start all the same
    assert code == DONE
    assert "nothing to do: job 12 ended this chain" in out


def test_a_mistake_ends_with_its_text_and_no_restart(batch: Batch) -> None:
    code, out = end(batch("0 2 0 dgpt: tp = 3"))
    assert code == MISTAKE
    assert "what failed first:\ndgpt: tp = 3\n" in out


def test_a_start_that_left_no_word_is_recorded_by_the_next(batch: Batch) -> None:
    Path("run").mkdir()
    record(Path("run"), Event(1.0, "start", "12", "12", 0, ("n0",), 0))
    assert end(batch("100 0 0"))[0] == DONE
    lost = history(Path("run"))[1]
    assert (lost.event, lost.restart, lost.code, lost.suspects) == ("stop", 0, FAILED, ("n0",))
    assert "its node was lost" in lost.reason


def test_a_run_that_another_job_serves_is_refused_and_nothing_is_said_of_its_end(batch: Batch) -> None:
    """The stand-in for scontrol says of every job that it is running."""
    Path("run").mkdir()
    record(Path("run"), Event(1.0, "start", "11", "11", 0, ("n0",), 0))
    process = batch("100 0 0")
    assert end(process)[0] == MISTAKE
    assert told() == [("start", 0, 0, None)]
    assert not Path("met").exists()


def test_addresses_that_the_user_names_are_taken_in_the_order_of_the_nodes(batch: Batch) -> None:
    end(batch("100 0 0", DGPT_NODE_ADDRESSES="10.9.0.1 10.9.0.2"))
    assert Path("met").read_text().startswith("10.9.0.1:")
    code, _ = end(batch("100 0 0", DGPT_NODE_ADDRESSES="10.9.0.1"))
    assert code == MISTAKE


def test_it_is_for_batch_jobs_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dgpt.slurm.job", "x", "pretrain", "y"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin"}, check=False)
    assert done.returncode == MISTAKE
    assert "this is no batch job of Slurm" in done.stderr


def test_node_script_tells_the_launcher_what_differs(tmp_path: Path) -> None:
    from dgpt.scripts import script

    launcher = tmp_path / "torchrun.sh"
    launcher.write_text(
        'echo "$NODE_RANK $NODE_ADDR $DGPT_VERDICT $*"; echo err >&2; kill -0 $$; echo $$ >"$DGPT_LOGS/pid"\n'
    )
    given = {"PATH": "/usr/bin:/bin", "DGPT_NODE_ADDRESSES": "10.0.0.1 10.0.0.2", "SLURM_NODEID": "1",
             "SLURMD_NODENAME": "n1", "DGPT_LOGS": str(tmp_path), "DGPT_TORCHRUN": str(launcher)}  # fmt: skip
    with subprocess.Popen(["bash", str(script("slurm/node.sh")), "-m", "x"], env=given) as process:
        assert process.wait(timeout=20) == 0
        assert int((tmp_path / "pid").read_text()) == process.pid, "signals reach the launcher itself"
    assert (tmp_path / "n1.log").read_text() == f"1 10.0.0.2 {tmp_path}/n1.json --tee 3 -m x\nerr\n"


def test_verdicts_of_an_agent_are_for_the_batch_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dgpt.agent import node as agent
    from dgpt.outcome import Verdict

    verdict = Verdict("n1", STOPPED, "", 1.5, False)
    assert agent._end(verdict) == STOPPED
    monkeypatch.setenv("DGPT_VERDICT", str(tmp_path / "n1.json"))
    assert agent._end(verdict) == DONE, "srun would end the other nodes while they save"
    assert Verdict.read(tmp_path / "n1.json") == verdict
    assert json.loads((tmp_path / "n1.json").read_text())["node"] == "n1"


class Full(StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_hides_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dgpt.agent import node as agent
    from dgpt.outcome import Verdict

    verdict = Verdict("n1", FAILED, "dgpt: rank 3 on n1 failed", 1.5, False)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Full())
        patch.setenv("DGPT_VERDICT", str(tmp_path / "n1.json"))
        assert agent._end(verdict) == FAILED
    assert Verdict.read(tmp_path / "n1.json") == verdict
    monkeypatch.setenv("DGPT_VERDICT", str(tmp_path / "gone/n1.json"))
    assert agent._end(verdict) == FAILED


def test_a_start_that_is_refused_is_no_lost_node_to_the_next(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    from dgpt.slurm import job, launch

    for name, value in (("SLURM_JOB_ID", "12"), ("SLURM_JOB_NODELIST", "n[0-1]"), ("SLURMD_NODENAME", "n0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "port_is_free", lambda port: False)
    monkeypatch.setattr(job, "die_with_parent", lambda: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    with pytest.raises(UserError, match="no port from"):
        job.main("script", "pretrain", "run.toml")
    for number, handler in before.items():
        signal.signal(number, handler)
    assert told() == [("start", 0, 0, None), ("stop", 0, 0, MISTAKE)]


def test_a_verdict_that_cannot_be_read_yet_ends_no_job(tmp_path: Path) -> None:
    from dgpt.outcome import Verdict
    from dgpt.slurm import job

    verdict = Verdict("n0", FAILED, "dgpt: hang", 1.5, False)
    verdict.write(tmp_path / "n0.json")
    (tmp_path / "n1.json").symlink_to("gone")  # reads as a stale file handle does: an OSError
    assert job._verdicts(tmp_path) == {"n0": verdict}


UNFIT = (
    '{"report": {"readings": [], "problems": [{"what": "GPU 3 of n1 computes wrong", "fix": "tell", '
    '"suspects": ["n1"], "fatal": true, "passing": false}], "world": 2, "seconds": 3.5, "reduce_seconds": 0.1}}'
)
FIT = UNFIT.replace('"fatal": true', '"fatal": false')


@pytest.fixture
def examined(batch: Batch, fake: Any) -> Batch:
    """With a preflight that says what the file `doctor` holds."""
    Path("run.toml").write_text('run_dir = "run"\n')
    fake("srun", f'[[ $* == *dgpt.doctor* ]] && {{ echo "$DGPT_NODES" >nodes; cat doctor; exit; }}\n{SRUN}')
    return batch


def test_nodes_are_examined_once_before_the_ranks(examined: Batch) -> None:
    Path("doctor").write_text(f"a word of a library\n{FIT}\n")
    code, out = end(examined("40 1 0 dgpt: rank 1 was killed", "100 0 0"))
    assert code == DONE
    assert Path("nodes").read_text() == "n0 n1\n"
    assert out.count("preflight: warning: GPU 3 of n1 computes wrong; tell") == 1
    assert out.count("preflight: 0 nodes, 2 ranks, 3.5 s") == 1
    assert told()[1] == ("stop", 0, 40, FAILED)


def test_an_unfit_node_sends_the_job_back_to_the_queue_before_any_rank_starts(examined: Batch, tmp_path: Path) -> None:
    Path("doctor").write_text(UNFIT)
    code, out = end(examined("100 0 0"))
    assert code == FAILED
    assert "the preflight found: GPU 3 of n1 computes wrong" in out
    assert not Path("met").exists()
    assert "requeue 12" in (tmp_path / "bin/scontrol.calls").read_text()
    stop = history(Path("run"))[-1]
    assert (stop.event, stop.suspects, stop.unfit, stop.ends_chain) == ("stop", ("n1",), True, False)


def test_what_is_no_fault_of_a_node_ends_the_job(examined: Batch, tmp_path: Path) -> None:
    Path("doctor").write_text(UNFIT.replace('["n1"]', "[]"))
    code, out = end(examined("100 0 0"))
    assert code == FAILED
    assert "to start again would end the same way" in out
    assert "requeue" not in (tmp_path / "bin/scontrol.calls").read_text()


def test_a_preflight_without_a_report_stops_nothing(examined: Batch) -> None:
    Path("doctor").write_text('{"unreached": "n1", "error": "connection refused"}\n{"torn')
    code, out = end(examined("100 0 0"))
    assert code == DONE
    assert "preflight: n1 does not reach n0: connection refused" in out
    assert "preflight: no report; going on without one" in out
