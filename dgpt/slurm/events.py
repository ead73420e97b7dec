"""run_dir/events.jsonl: every start and stop of a run, one JSON object a line, over all its jobs."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

FILE = "events.jsonl"
Kind = Literal["submit", "start", "signal", "stop", "exclude"]  # signal: Slurm told the job to end


@dataclass(frozen=True)
class Event:
    """Something that happened to a run."""

    time: float  # Unix time, seconds
    event: Kind
    job: str
    chain: str  # the jobs that follow one another for one run share it
    restart: int  # number of the start within the run, from 0: of the folder logs/restart_<R>
    nodes: tuple[str, ...]  # of the job; exclude: those that dgpt left out of it
    step: int  # of the newest checkpoint
    reason: str = ""  # why it stopped or started again, for people
    code: int | None = None  # a stop: exit code of the run
    suspects: tuple[str, ...] = ()  # a stop: nodes that it failed on
    ends_chain: bool = False  # a stop: the run is not to go on by itself
    unfit: bool = False  # a stop: the preflight found that nothing can be trained on the suspects


def record(run_dir: Path, event: Event) -> None:
    """Append an event, durably; a line is written at once, so that two writers do not mix."""
    line = json.dumps(asdict(event)) + "\n"
    handle = os.open(run_dir / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def history(run_dir: Path) -> list[Event]:
    """All events in their order; a torn line is left out."""
    known = {field.name for field in fields(Event)}
    events = []
    try:
        lines = (run_dir / FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            values = {name: value for name, value in json.loads(line).items() if name in known}
            events.append(Event(**{**values, "nodes": tuple(values["nodes"]),
                                   "suspects": tuple(values.get("suspects", ()))}))  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return events


def next_restart(events: Sequence[Event]) -> int:
    return 1 + max((event.restart for event in events if event.event == "start"), default=-1)


def barren(events: Sequence[Event], chain: str, step: int) -> int:
    """How many starts of this chain in a row, up to the newest, began at the checkpoint that is still the newest."""
    starts = [event.step for event in events if event.event == "start" and event.chain == chain]
    count = 0
    while count < len(starts) and starts[-1 - count] == step:
        count += 1
    return count


def unfinished(events: Sequence[Event]) -> Event | None:
    """The last start, if nothing was said of its end."""
    last = last_of(events, "start", "stop")
    return last if last and last.event == "start" else None


def last_of(events: Sequence[Event], *kinds: Kind) -> Event | None:
    return next((event for event in reversed(events) if event.event in kinds), None)


def unstarted(events: Sequence[Event], chain: str) -> list[str]:
    """Jobs of a chain that were submitted and have not started, in their order."""
    started = {event.job for event in events if event.event == "start"}
    return [event.job for event in events
            if event.event == "submit" and event.chain == chain and event.job not in started]  # fmt: skip


def waiting(events: Sequence[Event], chain: str, job: str) -> list[str]:
    """Jobs of a chain that were submitted after `job` and have not started."""
    submitted = [event.job for event in events if event.event == "submit" and event.chain == chain]
    later = submitted[submitted.index(job) + 1 :] if job in submitted else []
    return [other for other in unstarted(events, chain) if other in later]


def now() -> float:
    return round(time.time(), 3)
