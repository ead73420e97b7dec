"""What Slurm's commands print, as data; and how a run goes on in another job."""

from pathlib import Path

import pytest

from dgpt.config import SlurmConfig
from dgpt.slurm import client
from dgpt.slurm.client import SlurmError
from dgpt.slurm.events import history
from dgpt.slurm.requeue import go_on, newest_step, options_of
from dgpt.slurm.runtime import Job

RECORD = (
    "JobId=12 JobName=my run UserId=me(1000) JobState=RUNNING Reason=None Requeue=1 Restarts={restarts} "
    "TimeLimit=1-00:00:00 Partition=gpu NodeList=n[0-1] NumNodes=2 CPUs/Task=16 Features=(null) Account=lab QOS=normal "
    "TresPerNode=gres:gpu:8 StdOut=/runs/my run/slurm/job_12.out Power= "
)
JOB = Job("12", "chain-1", 1, "n[0-1]", "n0", 16, 8, 8, "")
REQUEUE = 'if [[ $1 == show ]]; then echo "{record}"; else echo "{said}" >&2; exit {code}; fi'


def test_fields_of_a_record_may_hold_spaces() -> None:
    record = client.fields(RECORD)
    assert record["JobName"] == "my run"
    assert record["StdOut"] == "/runs/my run/slurm/job_12.out"
    assert record["CPUs/Task"] == "16"
    assert record["Power"] == ""


def test_addresses_come_in_the_order_of_the_job(fake) -> None:
    fake("scontrol", 'if [[ $2 == hostnames ]]; then echo n1; echo n0; else '
         'echo "NodeName=n0 A=x NodeAddr=10.0.0.1 State=IDLE"; echo "NodeName=n1 NodeAddr=10.0.0.2"; fi')  # fmt: skip
    assert list(client.node_addresses("n[1,0]").items()) == [("n1", "10.0.0.2"), ("n0", "10.0.0.1")]


def test_a_failure_says_what_slurm_said(fake) -> None:
    fake("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    with pytest.raises(SlurmError, match="scontrol: slurm_load_jobs error: Invalid job id specified"):
        client.job_record("9")
    fake("scontrol", "exec sleep 5")
    with pytest.raises(SlurmError, match="no answer within 0 s"):
        client.call("scontrol", seconds=0.2)


def test_a_job_is_requeued(fake, tmp_path: Path) -> None:
    calls = fake("scontrol", REQUEUE.format(record=RECORD.format(restarts=1), said="", code=0))
    assert "requeued" in go_on(JOB, tmp_path, ["run.toml"], SlurmConfig(), 0.0)
    assert "requeue 12" in calls()


def test_a_job_that_slurm_has_requeued_itself_is_left_alone(fake, tmp_path: Path) -> None:
    calls = fake("scontrol", REQUEUE.format(record=RECORD.format(restarts=2), said="", code=0))
    assert go_on(JOB, tmp_path, ["run.toml"], SlurmConfig(), 0.0) == "Slurm has requeued job 12"
    assert not any(call.startswith("requeue") for call in calls())


def test_where_requeue_is_forbidden_a_job_of_the_same_shape_follows(fake, tmp_path: Path) -> None:
    said = "Requested operation is presently disabled for job 12"
    fake("scontrol", REQUEUE.format(record=RECORD.format(restarts=1), said=said, code=1))
    submitted = fake("sbatch", 'echo "$DGPT_CHAIN" >"$0.chain"; echo "13;cluster"')
    assert "job 13 follows" in go_on(JOB, tmp_path, ["run.toml", "seed=1"], SlurmConfig(), 0.0)
    (call,) = submitted()
    assert call.startswith("--parsable --dependency=afterany:12 --export=ALL ")
    assert call.endswith(f"{tmp_path}/slurm/job_12.sbatch run.toml seed=1")
    assert (tmp_path / "bin/sbatch.chain").read_text() == "chain-1\n"
    assert [(event.event, event.job, event.chain) for event in history(tmp_path)] == [("submit", "13", "chain-1")]


def test_options_for_a_job_of_the_same_shape() -> None:
    assert options_of(client.fields(RECORD)) == [
        "--time=1-00:00:00", "--partition=gpu", "--nodes=2", "--cpus-per-task=16", "--account=lab", "--qos=normal",
        "--gres=gpu:8", "--output=/runs/my run/slurm/job_%j.out",
    ]  # fmt: skip


def test_memory_reservation_and_whole_nodes_stay_as_they_were() -> None:
    given = "MinCPUsNode=16 MinMemoryNode=0 MinTmpDiskNode=0 Reservation=r1 OverSubscribe=NO Contiguous=0"
    assert {"--mem=0", "--reservation=r1", "--exclusive"} <= set(options_of(client.fields(f"{RECORD}{given}")))
    other = options_of(client.fields(f"{RECORD}MinMemoryCPU=100M Reservation=(null) OverSubscribe=OK"))
    assert "--mem-per-cpu=100M" in other
    assert not any(option.startswith(("--mem=", "--reservation", "--exclusive")) for option in other)


def test_only_committed_checkpoints_count(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    for name in ("step_00000010", "step_00000020", "step_00000030.tmp-1"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    for name in ("step_00000010", "step_00000030.tmp-1"):
        (tmp_path / "checkpoints" / name / "manifest.json").touch()
    assert newest_step(tmp_path) == 10
