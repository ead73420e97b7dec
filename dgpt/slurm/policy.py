"""What a job does when its ranks have ended: nothing more, start again, or requeue. Pure functions."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from dgpt.outcome import DONE, FAILED, MISTAKE, STOPPED, Verdict

BARREN_STARTS = 3  # in a row without a new checkpoint, then a job gives up
PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS = 5.0, 0.2
LAST_MOMENT_SECONDS = 20.0  # before the end of a job
# In the words of a rank: what a node may be to blame for; not an error of the program, which fails alike everywhere.
_NODE = re.compile(
    r"was killed by|CUDA (?!out of memory)|NCCL|cu(DNN|BLAS)|ECC|Input/output error|Stale file handle|hang: "
)
# What began on the node that says it. The others wait for that rank and are killed by srun, and may leave no word; of a
# node that is lost they say connection, NCCL or SIGABRT (from NCCL's watchdog).
_BEGAN_HERE = re.compile(r"was killed by SIG(?!ABRT|TERM|USR1)|CUDA (?!out of memory)|ECC|hang: ")
REQUEUED = "requeued"
SILENT = """{nodes} left no word: the launcher there was killed, or the node was lost"""
# How ranks end that Slurm ends before they have saved: no failure.
_CUT_OFF = re.compile(r"$|dgpt: SIG\w+ ended the workers|[^\n]* left no word: |srun (did not end|ended with)")


@dataclass(frozen=True)
class End:
    """How the ranks of all nodes ended."""

    code: int  # dgpt.outcome
    text: str  # the first failure, for people; empty if there is none
    suspects: tuple[str, ...] = ()  # nodes that the failure came from
    final: bool = False  # to start again would end the same way
    unfit: bool = False  # the preflight found that nothing can be trained on the suspects

    @property
    def failed(self) -> bool:
        """Whether something failed by itself, also while the ranks saved after a signal of Slurm."""
        return _CUT_OFF.match(self.text) is None


def end_of(verdicts: Mapping[str, Verdict], nodes: Sequence[str], srun_code: int | None) -> End:
    """One end from the words of the nodes' agents and srun's exit code (None: srun itself never ended).

    The clocks of the nodes decide which failure was the first. Where no node at all has left a word, srun has started
    nothing, as without slurmctld, and no node is a suspect.
    """
    words = [verdicts[node] for node in nodes if node in verdicts]
    silent = tuple(node for node in nodes if node not in verdicts)
    if mistakes := [word for word in words if word.exit_code == MISTAKE]:
        return End(MISTAKE, max(mistakes, key=lambda word: len(word.text)).text, final=True)
    lost = SILENT.format(nodes=", ".join(silent)) if silent else ""
    if failures := sorted((word for word in words if word.exit_code == FAILED), key=lambda word: word.time):
        first = failures[0]
        own = (first.node,) if first.node and _NODE.search(first.text) else ()
        final = any(word.final for word in failures)
        if _BEGAN_HERE.search(first.text):
            return End(FAILED, first.text, own, final)
        return End(FAILED, f"{first.text}\n{lost}".rstrip(), silent or own, final)
    if silent or srun_code != 0:
        interrupted = next((word.text for word in words if word.text), "")
        said = "srun did not end" if srun_code is None else f"srun ended with {srun_code}"
        return End(FAILED, "\n".join(filter(None, (interrupted, lost or said))), silent if words else ())
    return End(max((word.exit_code for word in words), default=DONE), "")


@dataclass(frozen=True)
class Facts:
    """What else counts."""

    stopped_by: str = ""  # why Slurm stopped it, for people; empty if Slurm did not
    cancelled: bool = False  # by scancel
    barren: int = 0  # starts in a row without a new checkpoint, with this one
    nodes_answer: bool = False  # every node gave a sign of life after the end
    successors: int = 0  # jobs of the same chain that wait for the end of this one
    replaceable: bool = False  # a suspect has failed too often, and a requeued job can do without it


Action = Literal["end", "again", "requeue"]


@dataclass(frozen=True)
class Decision:
    """What to do, the exit code of the job, and why, for people."""

    action: Action
    code: int
    reason: str
    ends_chain: bool = True  # jobs that wait for the end of this one have nothing to do


def decide(end: End, facts: Facts) -> Decision:
    """After an end of the ranks."""
    if end.code == DONE:
        return Decision("end", DONE, "finished")
    if end.code == MISTAKE:
        return Decision("end", MISTAKE, f"a mistake in what was given: {first_line(end.text)}")
    if facts.cancelled:
        return Decision("end", end.code, f"cancelled by scancel, {_saved(end)}")
    if end.code == STOPPED and not facts.stopped_by:
        return Decision("end", STOPPED, "the user asked it to stop (dgpt stop, or a signal to the ranks)")
    return _go_on(end, facts, _what(end, facts.stopped_by))


def blamed(end: End, facts: Facts) -> tuple[str, ...]:
    """Nodes that the failure came from. Where Slurm ended the job only those that say so themselves: ranks that it
    kills before they have saved leave no word either. A job that it requeues may have lost a node."""
    says_so = end.failed and _BEGAN_HERE.search(end.text)
    return end.suspects if facts.stopped_by in ("", REQUEUED) or says_so else ()


def _go_on(end: End, facts: Facts, what: str) -> Decision:
    """The run is not finished and shall go on, if there is hope."""
    asked = facts.stopped_by
    if facts.barren >= BARREN_STARTS:
        return Decision("end", FAILED, f"{what}; no new checkpoint in {facts.barren} starts in a row, so it gives up")
    if not asked and end.final:
        return Decision("end", FAILED, f"{what}; to start again would end the same way")
    stays = facts.nodes_answer and not end.unfit and not facts.replaceable
    if not asked and facts.barren < 2 and stays:
        return Decision("again", FAILED, f"{what}; all nodes answer", ends_chain=False)
    if asked and facts.successors:
        return Decision("end", STOPPED, f"{what}; the next job of the chain goes on", ends_chain=False)
    return Decision("requeue", end.code, what, ends_chain=False)


def pause(barren: int) -> float:
    """Seconds before a start in the same allocation: what failed before it made progress may need a while to mend."""
    return PAUSE_SECONDS * barren or SHORTEST_PAUSE_SECONDS


def refuse(barren: int, end_before: str) -> Decision | None:
    """Before a start: give up where Slurm requeues a job for ever. `barren`: starts so far at this checkpoint."""
    if barren < BARREN_STARTS:
        return None
    last = f"; the last one: {end_before}" if end_before else ""
    return Decision("end", FAILED, f"no new checkpoint in {barren} starts in a row, so it gives up{last}")


def why_slurm_stopped(signal: str, record: Mapping[str, str], restart: int) -> tuple[str, bool]:
    """Why, for people, and whether it was scancel; "" and False if Slurm did not.

    signal: the first one that the batch script got, or empty. record: of the job, by scontrol. restart: the number of
    requeues when it began. A job that ends for whatever reason is shown as COMPLETING.
    """
    if record.get("PreemptTime", "None") not in ("None", "Unknown"):
        return "preempted by a job of higher priority", False
    if int(record.get("Restarts", restart)) > restart:
        return REQUEUED, False
    state = record.get("JobState", "")
    if "TimeLimit" in (record.get("Reason"), state) or state == "TIMEOUT":
        return "the time limit", False
    if signal == "SIGTERM" and state in ("COMPLETING", "CANCELLED"):
        return "scancel", True
    return {"SIGUSR1": "the time limit comes (SIGUSR1)", "SIGTERM": "Slurm sent SIGTERM"}.get(signal, ""), False


def deadline(record: Mapping[str, str], now: float) -> float:
    """Unix time at which to requeue a running job although its ranks still save: it would end with them unrequeued.

    A job that is cancelled or preempted for good is COMPLETING, and shows that moment as its end.
    """
    with suppress(ValueError):
        left = datetime.fromisoformat(record.get("EndTime", "")).timestamp() - now
        if record.get("JobState") == "RUNNING" and left > 0:
            return now + left - min(LAST_MOMENT_SECONDS, left / 4)
    return float("inf")


def _what(end: End, asked: str) -> str:
    if not asked:
        return last_line(end.text) or "the ranks failed"
    return f"{asked}, {_saved(end)}"


def _saved(end: End) -> str:
    failure = f": {last_line(end.text)}" if end.failed else ""
    return f"before the ranks could save{failure}" if end.code != STOPPED else "saved"


def first_line(text: str) -> str:
    return text.partition("\n")[0].removeprefix("dgpt: ")


def last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2].removeprefix("dgpt: ")
