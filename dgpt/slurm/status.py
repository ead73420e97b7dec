"""`dgpt status`: what a run is doing, from Slurm where it knows the job, and from the run folder."""

import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from dgpt import lease
from dgpt.config import SlurmConfig
from dgpt.errors import UserError
from dgpt.lease import Holder
from dgpt.outcome import DONE
from dgpt.slurm import client, events, exclude, reasons
from dgpt.slurm.client import SlurmError
from dgpt.slurm.events import Event
from dgpt.slurm.lead import tail_rows
from dgpt.watch import straggler
from dgpt.watch.board import nodes_of_ranks

SHOWN_RESTARTS = 5


@dataclass(frozen=True)
class Facts:
    """All that is known of a run at one time."""

    run_dir: str
    now: float  # Unix time, seconds
    total_steps: int  # 0 if unknown: before the first start
    slurm: SlurmConfig
    history: Sequence[Event]
    job: Mapping[str, str]  # of the newest job, by scontrol; empty if Slurm does not know it or there is none
    holder: tuple[Holder, float] | None  # who writes to the run folder, and seconds since its last sign of life
    row: Mapping[str, float | None]  # newest of metrics.jsonl
    validation: Mapping[str, float | None]  # newest with a validation loss
    checkpoint: tuple[int, float] | None  # step and Unix time of the newest one
    slow: str = ""  # a rank that the others wait for


def gather(run_dir: Path) -> Facts:
    """Raises UserError if there is no run in the folder."""
    history = events.history(run_dir)
    if not run_dir.is_dir() or not (history or (run_dir / "config.toml").is_file() or (run_dir / "slurm").is_dir()):
        raise UserError(f"'{run_dir}' is no run folder", rule="status looks at the run_dir of a run",
                        fix="give the run_dir of the TOML file, for example runs/demo")  # fmt: skip
    rows, settings = list(tail_rows(run_dir / "metrics.jsonl")), _settings(run_dir)
    return Facts(
        run_dir=str(run_dir), now=time.time(), history=history, job=_job(history), holder=lease.holder(run_dir),
        total_steps=int(settings.get("training", {}).get("steps", 0)),
        slurm=SlurmConfig.model_validate(settings.get("slurm", {})),
        row=rows[-1] if rows else {},
        validation=next((row for row in reversed(rows) if row.get("loss/validation") is not None), {}),
        checkpoint=_checkpoint(run_dir), slow=_slow(run_dir, rows),
    )  # fmt: skip


def describe(facts: Facts) -> Iterator[tuple[str, str]]:
    """(what, value) for each line, for people."""
    yield "run", facts.run_dir
    yield from _state(facts)
    yield from _progress(facts)
    yield from _restarts(facts)
    for bad in exclude.bad_nodes(facts.history, facts.now, facts.slurm):
        yield "left out", str(bad)


def _state(facts: Facts) -> Iterator[tuple[str, str]]:
    job, state = facts.job, facts.job.get("JobState", "")
    name = f"job {job.get('JobId', '')}"
    if state == "PENDING":
        meaning, help_ = reasons.waiting(job.get("Reason", "None"), job["JobId"])
        yield "state", f"waiting: {name}, {job.get('NumNodes', '?')} nodes: {meaning}"
        yield "help", help_
    elif state in ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED"):
        where = f"{job.get('NumNodes', '?')} nodes {job.get('NodeList', '')}"
        limit = f"{job.get('RunTime', '?')} of {job.get('TimeLimit', '?')}"
        yield "state", f"{'running' if state == 'RUNNING' else state.lower()}: {name}, {where}, {limit}"
        if facts.holder and facts.holder[1] > facts.holder[0].stale_seconds:
            yield "help", f"{facts.holder[0]} gave no sign of life for {_time(facts.holder[1])}: its node may be lost"
    elif facts.holder and alive(facts):
        yield "state", f"running: {facts.holder[0]}, last sign of life {_time(facts.holder[1])} ago"
    else:
        yield from _ended(facts)


def _ended(facts: Facts) -> Iterator[tuple[str, str]]:
    last = events.last_of(facts.history, "start", "stop")
    state = facts.job.get("JobState", "")
    total = facts.total_steps
    done = facts.checkpoint[0] if facts.checkpoint else 0
    if (last and last.event == "stop" and last.code == DONE) or (total and done >= total):
        yield "state", f"finished: step {done}"
    elif last and last.event == "stop":
        yield "state", f"stopped: {last.reason}"
        if last.reason and (meaning := reasons.ended(state)) and state.startswith(("OUT_OF", "NODE", "TIMEOUT")):
            yield "killed", meaning
    elif state:
        told = events.last_of(facts.history, "start", "signal")
        why = told.reason if told and told.event == "signal" else "without a word"
        yield "state", f"ended: job {facts.job.get('JobId')} is {state} ({why})"
        yield "killed", reasons.ended(state) or f"Slurm says {facts.job.get('Reason', 'nothing')}"
    elif facts.holder:
        yield "state", f"dead: {facts.holder[0]} gave no sign of life for {_time(facts.holder[1])}"
        yield "help", "start it again: it goes on from the newest checkpoint"
    else:
        yield "state", "not running" if facts.total_steps else "never started"


def _progress(facts: Facts) -> Iterator[tuple[str, str]]:
    row, total = facts.row, facts.total_steps
    step = int(row.get("step") or (facts.checkpoint[0] if facts.checkpoint else 0))
    if total:
        yield "step", f"{step:,} of {total:,} ({100 * step / total:.1f}%)"
    if (loss := row.get("loss/train")) is not None:
        validation = facts.validation.get("loss/validation")
        at = f"; validation {validation:.4f} at step {facts.validation.get('step') or 0:,.0f}" if validation else ""
        yield "loss", f"{loss:.4f}{at}"
    if speed := row.get("speed/tokens_per_second"):
        age = facts.now - (row.get("time") or facts.now)
        yield "speed", f"{speed:,.0f} tokens/s, {_time(age)} ago"
    if facts.slow:
        yield "slow", facts.slow
    if facts.checkpoint:
        saved, when = facts.checkpoint
        yield "saved", f"step {saved:,}, {_time(facts.now - when)} ago"
    yield from _eta(facts, total - step)


def _eta(facts: Facts, steps: int) -> Iterator[tuple[str, str]]:
    pace = facts.row.get("speed/seconds_per_step")
    if not pace or steps <= 0:
        return
    needed, left = steps * pace, _seconds_left(facts)
    text = f"{_time(needed)} of training for the rest"
    if left is not None:
        enough = "this job is long enough" if needed < left else "it goes on in another job"
        text += f"; the job ends in {_time(left)}: {enough}"
    yield "ETA", text


def _seconds_left(facts: Facts) -> float | None:
    """None if the job does not run, or has no limit."""
    try:
        end = datetime.fromisoformat(facts.job.get("EndTime", "")).timestamp()
    except ValueError:
        return None
    return end - facts.now if facts.job.get("JobState") == "RUNNING" and end > facts.now else None


def _restarts(facts: Facts) -> Iterator[tuple[str, str]]:
    starts = [event for event in facts.history if event.event == "start"]
    if len(starts) > 1:
        yield "restarts", str(len(starts) - 1)
    stops = [event for event in facts.history if event.event == "stop"]
    for stop in stops[-SHOWN_RESTARTS:]:
        when = datetime.fromtimestamp(stop.time).strftime("%Y-%m-%d %H:%M")
        yield "", f"{when}  job {stop.job}, start {stop.restart}, step {stop.step}: {stop.reason}"


def _job(history: Sequence[Event]) -> dict[str, str]:
    """Slurm's record of the run's newest job that has not ended, or else of its newest."""
    found: dict[str, str] = {}
    for job in dict.fromkeys(event.job for event in reversed(history)):
        try:
            record = client.job_record(job)
        except SlurmError:
            break  # none here, or it has forgotten this job and all before
        found = found or record
        if record.get("JobState") in ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED"):
            return record
        if record.get("JobState") == "PENDING" and "Dependency" not in record.get("Reason", ""):
            found = record
    return found


def _settings(run_dir: Path) -> dict[str, Any]:
    """The resolved settings of the last start, of whatever verb; nothing before it."""
    try:
        return tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _slow(run_dir: Path, rows: Sequence[Mapping[str, float | None]]) -> str:
    found = straggler.find(rows)
    return found.text(nodes_of_ranks(run_dir)) if found else ""


def _checkpoint(run_dir: Path) -> tuple[int, float] | None:
    manifests = (run_dir / "checkpoints").glob("step_*/manifest.json")
    found = [(int(path.parent.name.removeprefix("step_")), path.stat().st_mtime) for path in manifests
             if path.parent.name.removeprefix("step_").isdecimal()]  # fmt: skip
    return max(found, default=None)


def alive(facts: Facts) -> bool:
    """Whether a process that holds the run folder shows signs of life."""
    if facts.holder is None:
        return False
    holder, age = facts.holder
    return holder.fate if holder.fate is not None else age < holder.stale_seconds


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(max(0, seconds))))
