"""Does a run hang, and who keeps the others waiting? Pure functions of what all ranks said."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from dgpt.watch.heartbeat import END

QUIET = 4  # no rank has moved for a quarter of the patience: the others of a rank that hangs wait for it within a step
SHOWN = 16  # ranks that a sentence names
STATES = {"stopped": "its process is stopped (SIGSTOP)", "tracing-stop": "a debugger holds it",
          "silent": "the agent of its node is silent, too", "gone": "its node has left",
          "disk-sleep": "it waits for a disk or a file server"}  # fmt: skip
HELD = ("stopped", "tracing-stop", "silent", "gone")


@dataclass(frozen=True)
class Seen:
    """A rank, as the agent of its node sees it."""

    rank: int
    node: str
    pid: int
    step: int
    phase: str
    progress: int
    patience: float  # seconds that it may be still
    still: float  # seconds without a sign of life
    stuck: float  # seconds without progress
    state: str  # of its process, in the words of psutil; or silent, gone


@dataclass(frozen=True)
class Hang:
    """A run that does not move on."""

    text: str
    node: str  # of the first one that is missing; empty if nobody can be blamed
    ranks: tuple[int, ...]  # who is missing; empty if all stand at the same place
    since: float  # seconds ago


def find(ranks: Sequence[Seen], world_size: int) -> Hang | None:
    """None while all is well.

    Ranks train in step, so while one of them moves none hangs. All stand still within a step of one that hangs.
    """
    awake = [rank for rank in ranks if rank.phase != END]
    late = [rank for rank in awake if rank.still > rank.patience]
    if not late:
        return None
    quiet = min(rank.patience for rank in late) / QUIET
    if any(rank.stuck < quiet for rank in awake):
        return None
    missing = _missing(awake, ranks, world_size)
    if missing and not any(rank.state in HELD or rank in late for rank in missing):
        return None  # who waits for them is late, they are not: they do what may take longer
    if not missing and len(late) < len(awake):
        return None  # all are at one place, and some of them show that they work there
    return _describe(missing, awake)


def _missing(awake: Sequence[Seen], ranks: Sequence[Seen], world_size: int) -> list[Seen]:
    """Those that cannot go on, or else those that are behind, or else those that wait for a disk."""
    known = {rank.rank for rank in ranks}
    gone = [Seen(number, "", 0, 0, "", 0, 0, 0, 0, "gone") for number in range(world_size) if number not in known]
    if held := [rank for rank in awake if rank.state in HELD] + gone:
        return held
    first = min(rank.progress for rank in awake)
    behind = [rank for rank in awake if rank.progress == first]
    if len(behind) < len(awake):
        return behind
    return [rank for rank in awake if rank.state == "disk-sleep"]


def _describe(missing: Sequence[Seen], awake: Sequence[Seen]) -> Hang:
    named = [rank for rank in missing if rank.node]
    known = named or list(awake)
    first, since = known[0], min(rank.still for rank in known)
    if not missing:
        text = f"dgpt: hang: all {len(awake)} ranks have stood in {_place(first)} for {since:.0f} s"
        return Hang(f"{text}; their stacks are in the logs", "", (), since)
    who = ", ".join(_of_node(node, list(group)) for node, group in groupby(missing, lambda rank: rank.node))
    where = f"stood in {_place(first)} for {since:.0f} s" if missing[0].node else f"been missing for {since:.0f} s"
    why = f": {STATES[missing[0].state]}" if missing[0].state in STATES else ""
    text = f"dgpt: hang: {who} {'has' if len(missing) == 1 else 'have'} {where}{why}; {_waiting(awake, missing)}"
    return Hang(text, first.node if named else "", tuple(rank.rank for rank in missing), since)


def _waiting(awake: Sequence[Seen], missing: Sequence[Seen]) -> str:
    count = len(awake) - sum(rank in awake for rank in missing)
    return f"{count} rank{'s' * (count != 1)} wait{'s' * (count == 1)} for {'it' if len(missing) == 1 else 'them'}"


def _place(rank: Seen) -> str:
    if rank.phase == "start":
        return "the start, before its first step"
    return (
        f"'{rank.phase}' after step {rank.step}" if rank.phase in AFTER else f"'{rank.phase}' of step {rank.step + 1}"
    )


AFTER = ("evaluate", "checkpoint")  # phases whose step is done


def _of_node(node: str, ranks: Sequence[Seen]) -> str:
    process = f" (process {ranks[0].pid})" if len(ranks) == 1 and node else ""
    return f"{_numbers([rank.rank for rank in ranks])} on {node or 'a node that has left'}{process}"


def _numbers(ranks: Iterable[int]) -> str:
    numbers = sorted(ranks)
    shown = ", ".join(map(str, numbers[:SHOWN])) + f" and {len(numbers) - SHOWN} more" * (len(numbers) > SHOWN)
    return f"rank{'s' * (len(numbers) > 1)} {shown}"
