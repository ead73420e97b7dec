"""How a run goes on in another job, and how a chain of jobs ends."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dgpt.slurm import client, events
from dgpt.slurm.client import SlurmError
from dgpt.slurm.events import Event
from dgpt.slurm.runtime import Job

SAME = {"NumNodes": "nodes", "Partition": "partition", "TimeLimit": "time", "Account": "account", "QOS": "qos",
        "CPUs/Task": "cpus-per-task", "TresPerNode": "gres", "Features": "constraint"}  # fmt: skip


def go_on(job: Job, run_dir: Path, arguments: Sequence[str]) -> str:
    """Requeue the job; where that is forbidden, submit one that follows it. Says what was done."""
    with suppress(SlurmError):
        record = client.job_record(job.id)
        if int(record.get("Restarts", 0)) > job.restart or record.get("JobState") == "PENDING":
            return f"Slurm has requeued job {job.id}"
    try:
        client.call("scontrol", "requeue", job.id)
        return f"job {job.id} is requeued (Slurm waits about two minutes before it starts again)"
    except SlurmError as error:
        refused = str(error)
    try:
        options = [f"--dependency=afterany:{job.id}", *options_of(client.job_record(job.id))]
        script = str(run_dir / "slurm" / f"job_{job.id}.sbatch")
        follower = client.submit([*options, script, *arguments], {"DGPT_CHAIN": job.chain})
    except SlurmError as error:
        return f"the run does not go on by itself: {refused}; {error}; submit it again"
    events.record(run_dir, Event(events.now(), "submit", follower, job.chain, 0, (), newest_step(run_dir),
                                 f"follows job {job.id}, which cannot be requeued: {refused}"))  # fmt: skip
    return f"requeue is refused ({refused}): job {follower} follows"


def options_of(record: Mapping[str, str]) -> list[str]:
    """Options of sbatch for a job of the same shape."""
    options = {SAME[name]: value for name, value in record.items() if name in SAME}
    options["nodes"] = options.get("nodes", "").partition("-")[0]
    options["gres"] = options.get("gres", "").replace("gres:", "")
    number = rf"(?<!\d){record.get('JobId', '')}(?!\d)(?=[^/]*$)"  # in the name of the file
    options["output"] = re.sub(number, "%j", record.get("StdOut", "").replace("%", "%%"))
    return [f"--{name}={value}" for name, value in options.items() if value and value not in ("(null)", "N/A")]


def newest_step(run_dir: Path) -> int:
    """Of the newest committed checkpoint, 0 without one; as in dgpt.checkpoint, which would import torch."""
    manifests = (run_dir / "checkpoints").glob("step_*/manifest.json")
    steps = (manifest.parent.name.removeprefix("step_") for manifest in manifests)
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def what_ended(history: Sequence[Event]) -> str:
    """Of the last start, whose batch script said nothing of its end."""
    last = events.last_of(history, "start", "signal")
    if last and last.event == "signal":
        return f"{last.reason}; the job was killed before its end"
    return "the batch script was killed without a signal: its node was lost"


def cancel_successors(job: Job, run_dir: Path) -> None:
    """Jobs of the chain that wait for nothing any more."""
    for other in events.waiting(events.history(run_dir), job.chain, job.id):
        with suppress(SlurmError):
            client.call("scancel", other)
