"""How a run goes on in another job, and how a chain of jobs ends."""

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dgpt.config import SlurmConfig
from dgpt.outcome import FAILED
from dgpt.slurm import client, events, exclude, lead
from dgpt.slurm.client import SlurmError
from dgpt.slurm.events import Event
from dgpt.slurm.runtime import Job

SAME = {"NumNodes": "nodes", "Partition": "partition", "TimeLimit": "time", "Account": "account", "QOS": "qos",
        "CPUs/Task": "cpus-per-task", "TresPerNode": "gres", "Features": "constraint",
        "ExcNodeList": "exclude", "MinMemoryNode": "mem", "MinMemoryCPU": "mem-per-cpu",
        "Reservation": "reservation"}  # fmt: skip


def go_on(job: Job, run_dir: Path, arguments: Sequence[str], settings: SlurmConfig, until: float) -> str:
    """Requeue the job; where that is forbidden, submit one that follows it. Either leaves bad nodes out.

    Says what was done. Tries again while slurmctld is away, up to a Unix time. Slurm takes a new --exclude from a job
    that is requeued, but no new --signal: for that the batch script looks at the time itself.
    """
    while True:
        try:
            return _go_on(job, run_dir, arguments, settings)
        except SlurmError as error:
            if client.known(job.id) or time.time() >= until:
                return f"the run does not go on by itself: {error}; submit it again"
        time.sleep(client.RETRY_SECONDS)


def _go_on(job: Job, run_dir: Path, arguments: Sequence[str], settings: SlurmConfig) -> str:
    """Raises SlurmError. Only what slurmctld has refused is tried in another way: it may do later what it has heard."""
    try:
        said = _requeue(job)
        return _lines(said, exclude.update(job.id, job.chain, run_dir, settings))
    except SlurmError as error:
        refused = str(error)
    if not client.known(job.id):
        raise SlurmError(refused)
    try:
        return _follow(job, run_dir, arguments, settings, refused)
    except SlurmError as error:
        raise SlurmError(f"{refused}; {error}") from None


def _requeue(job: Job) -> str:
    """Raises SlurmError."""
    with suppress(SlurmError):
        record = client.job_record(job.id)
        if int(record.get("Restarts", 0)) > job.restart or record.get("JobState") == "PENDING":
            return f"Slurm has requeued job {job.id}"
    client.call("scontrol", "requeue", job.id)
    return f"job {job.id} is requeued (Slurm waits about two minutes before it starts again)"


def _follow(job: Job, run_dir: Path, arguments: Sequence[str], settings: SlurmConfig, refused: str) -> str:
    """Submit a job of the same shape, which waits for the end of this one. Raises SlurmError."""
    options = options_of(client.job_record(job.id)) + signal_option(run_dir)
    script = str(run_dir / "slurm" / f"job_{job.id}.sbatch")
    follower = client.submit(
        [f"--dependency=afterany:{job.id}", "--export=ALL", *options, script, *arguments], {"DGPT_CHAIN": job.chain}
    )
    events.record(run_dir, Event(events.now(), "submit", follower, job.chain, 0, (), newest_step(run_dir),
                                 f"follows job {job.id}, which cannot be requeued: {refused}"))  # fmt: skip
    return _lines(f"requeue is refused ({refused}): job {follower} follows",
                  exclude.update(follower, job.chain, run_dir, settings))  # fmt: skip


def signal_option(run_dir: Path) -> list[str]:
    """--signal as the run has measured it; nothing, as the script says, if it has not."""
    pace = lead.measured(run_dir)
    return [f"--signal=B:USR1@{pace.lead}"] if pace else []


def _lines(*texts: str) -> str:
    return "\n".join(text for text in texts if text)


def options_of(record: Mapping[str, str]) -> list[str]:
    """Options of sbatch for a job of the same shape."""
    options = {SAME[name]: value for name, value in record.items() if name in SAME}
    options["nodes"] = options.get("nodes", "").partition("-")[0]
    options["gres"] = options.get("gres", "").replace("gres:", "")
    number = rf"(?<!\d){record.get('JobId', '')}(?!\d)(?=[^/]*$)"  # in the name of the file
    options["output"] = re.sub(number, "%j", record.get("StdOut", "").replace("%", "%%"))
    flags = ["--exclusive"] if record.get("OverSubscribe") == "NO" else []
    return flags + [f"--{name}={value}" for name, value in options.items() if value and value not in ("(null)", "N/A")]


def newest_step(run_dir: Path) -> int:
    """Of the newest committed checkpoint, 0 without one; as in dgpt.checkpoint, which would import torch."""
    manifests = (run_dir / "checkpoints").glob("step_*/manifest.json")
    steps = (manifest.parent.name.removeprefix("step_") for manifest in manifests)
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def what_ended(history: Sequence[Event], start: Event, step: int) -> Event:
    """The stop of the last start, whose batch script said nothing of its end: its node, the first one, is the suspect.

    Not after a signal: Slurm sends one before it ends a job for any other reason, a requeue by hand among them.
    """
    last = events.last_of(history, "start", "signal")
    reason, suspects = "the batch script was killed without a signal: its node was lost", start.nodes[:1]
    if last and last.event == "signal":
        reason, suspects = f"{last.reason}; the job was killed before its end", ()
    return replace(start, time=events.now(), event="stop", step=step, reason=reason, code=FAILED, suspects=suspects)


def warn_successors(job: Job, run_dir: Path, settings: SlurmConfig) -> list[str]:
    """Leave bad nodes out of the jobs of the chain that wait for the end of this one, too."""
    waiting = events.waiting(events.history(run_dir), job.chain, job.id)
    return [said for other in waiting if (said := exclude.update(other, job.chain, run_dir, settings))]


def cancel_successors(job: Job, run_dir: Path) -> None:
    """Jobs of the chain that wait for nothing any more."""
    for other in events.waiting(events.history(run_dir), job.chain, job.id):
        with suppress(SlurmError):
            client.call("scancel", other)
