"""Which nodes the next start of a run leaves out: those that it failed on twice, for a day, if others are there."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from dgpt.config import SlurmConfig
from dgpt.outcome import FAILED
from dgpt.slurm import client, events
from dgpt.slurm.client import SlurmError
from dgpt.slurm.events import Event
from dgpt.slurm.policy import last_line

GONE = ("down", "drain", "fail", "maint", "unknown", "boot", "power", "inval", "noresp", "future")  # begins of states
NONE = ("", "(null)", "None", "N/A")


@dataclass(frozen=True)
class Bad:
    """A node that a run failed on too often."""

    node: str
    failures: int
    until: float  # Unix time at which it may be used again
    reason: str  # of its last failure

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.until).strftime("%Y-%m-%d %H:%M")
        times = "once, unfit to train" if self.failures == 1 else f"{self.failures} times"
        return f"{self.node} until {when}: failed {times}, the last: {self.reason}"


@dataclass(frozen=True)
class Choice:
    """What becomes of the bad nodes."""

    added: tuple[str, ...]  # to the user's own --exclude
    kept: tuple[str, ...]  # too many: without them the job could not start
    text: str  # for people; empty if there is nothing to say


def bad_nodes(history: Sequence[Event], now: float, settings: SlurmConfig) -> list[Bad]:
    """The worst first. An examination that found a node unfit counts as many failures as it takes."""
    if not settings.exclude_after:
        return []
    window, found = settings.exclude_hours * 3600, dict[str, list[Event]]()
    for event in history:
        if event.event == "stop" and event.code == FAILED and now - event.time < window:
            for node in event.suspects:
                found.setdefault(node, []).append(event)
    bad = [Bad(node, len(stops), stops[-1].time + window, last_line(stops[-1].reason)) for node, stops in found.items()
           if len(stops) >= settings.exclude_after or any(stop.unfit for stop in stops)]  # fmt: skip
    return sorted(bad, key=lambda one: (-one.failures, one.node))


def choose(bad: Sequence[Bad], own: Collection[str], usable: Collection[str], needed: int) -> Choice:
    """Leave out as many as the job can do without.

    own: the user's --exclude. usable: nodes of the partition that jobs can get, these included. needed: by the job.
    """
    wanted = [one for one in bad if one.node not in own]
    spare = len(set(usable) - set(own)) - needed
    added, kept = list[Bad](), list[Bad]()
    for one in wanted:
        if one.node not in usable:  # it cannot be had anyway
            added.append(one)
        elif spare > 0:
            added.append(one)
            spare -= 1
        else:
            kept.append(one)
    lines = [f"left out: {one}" for one in added]
    lines += [
        f"not left out, as the partition has no more than {needed} nodes to use without it: {one}" for one in kept
    ]
    return Choice(tuple(one.node for one in added), tuple(one.node for one in kept), "\n".join(lines))


def usable(partition: str) -> set[str]:
    """Nodes of a partition (empty: the default one) that jobs can get, now or later. Raises SlurmError."""
    lines = client.call("sinfo", "-h", "-N", "-o", "%N %T %P", *(["-p", partition] if partition else []))
    rows = [line.split() for line in lines.splitlines()]
    return {row[0] for row in rows if len(row) == 3 and (partition or row[2].endswith("*")) and _works(row[1])}


def _works(state: str) -> bool:
    """'*' after a state: the node does not respond."""
    return not state.endswith("*") and not re.split(r"[^a-z]", state.lower())[0].startswith(GONE)


def expand(nodes: str) -> list[str]:
    """n[0-3] -> n0, n1, n2, n3. Raises SlurmError."""
    return [] if nodes in NONE else client.call("scontrol", "show", "hostnames", nodes).split()


def for_job(record: Mapping[str, str], history: Sequence[Event], settings: SlurmConfig) -> Choice:
    """For a job that Slurm knows; its record's ExcNodeList holds the user's own, and what dgpt has put there before.

    Raises SlurmError.
    """
    bad = bad_nodes(history, events.now(), settings)
    own = _own(record, history)
    asked_for = expand(record.get("ReqNodeList", ""))
    needed = int(record.get("NumNodes", "1").partition("-")[0])
    there = usable(record.get("Partition", "")) if bad else set[str]()
    return choose([one for one in bad if one.node not in asked_for], own, there, needed)


def replaceable(history: Sequence[Event], suspects: tuple[str, ...], settings: SlurmConfig) -> bool:
    """Whether a failure of the last start makes a suspect bad, and the job can do without it."""
    start = events.last_of(history, "start")
    if start is None or not suspects:
        return False
    told = [*history, replace(start, time=events.now(), event="stop", code=FAILED, suspects=suspects)]
    bad = {one.node for one in bad_nodes(told, events.now(), settings)}.intersection(suspects)
    with suppress(SlurmError):
        return bool(bad) and not bad.isdisjoint(for_job(client.job_record(start.job), told, settings).added)
    return False


def _own(record: Mapping[str, str], history: Iterable[Event]) -> list[str]:
    job = record.get("JobId", "")
    ours = {node for event in history if event.event == "exclude" and event.job == job for node in event.nodes}
    return [node for node in expand(record.get("ExcNodeList", "")) if node not in ours]


def update(job: str, chain: str, run_dir: Path, settings: SlurmConfig) -> str:
    """Tell Slurm what a job that waits (requeued just now, or for another one) shall leave out. Says what was done."""
    history = events.history(run_dir)
    try:
        record = client.job_record(job)
        choice, before = for_job(record, history, settings), expand(record.get("ExcNodeList", ""))
        nodes = [*_own(record, history), *choice.added]
        if set(nodes) != set(before):
            client.call("scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(nodes)}")
    except SlurmError as error:
        return f"bad nodes could not be left out of job {job}: {error}"
    if set(nodes) != set(before):
        note(run_dir, job, chain, choice)
    return choice.text


def note(run_dir: Path, job: str, chain: str, choice: Choice) -> None:
    events.record(run_dir, Event(events.now(), "exclude", job, chain, 0, choice.added, 0, choice.text))


def for_submission(run_dir: Path, own: str, partition: str, needed: int, settings: SlurmConfig) -> Choice:
    """For a job that is to be submitted; nothing where Slurm does not answer."""
    bad = bad_nodes(events.history(run_dir), events.now(), settings)
    with suppress(SlurmError):
        if bad:
            return choose(bad, expand(own), usable(partition), needed)
    return Choice((), (), "")
