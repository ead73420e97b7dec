"""Which rank is slow? Those that wait for the slowest take as long as it does, so each says what it took before it
waits: for its data and its forward passes, over the steps since the last logging step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

SLOW = 1.5  # times the median
COST_PERCENT = 5.0  # of the time of a step; less is not worth a word
WINDOWS = 3  # logging steps in a row: one may be noise
SLOWDOWN, RANK, COST = "straggler/slowdown", "straggler/rank", "straggler/cost_percent"


@dataclass(frozen=True)
class Straggler:
    rank: int
    slowdown: float  # times the median of all ranks

    def text(self, nodes: Mapping[int, str]) -> str:
        """`nodes`: rank -> node, as far as known."""
        node = nodes.get(self.rank)
        who = f"{node} (rank {self.rank})" if node else f"rank {self.rank}"
        return f"{who} is {self.slowdown:.1f} x slower than the median before the gradients are summed"


def points(own_seconds: Sequence[float], wall_seconds: float) -> dict[str, float]:
    """The slowest rank: times the median (the lower one of two), and the share of the time that the others lose by it.

    own_seconds: of each rank. wall_seconds: of the same steps. Empty where there is nothing to compare.
    """
    usual = median_low(own_seconds) if len(own_seconds) > 1 else 0.0
    if usual <= 0 or wall_seconds <= 0:
        return {}
    rank = max(range(len(own_seconds)), key=own_seconds.__getitem__)
    lost = own_seconds[rank] - usual
    return {SLOWDOWN: own_seconds[rank] / usual, RANK: rank, COST: 100 * lost / wall_seconds}


def find(rows: Sequence[Mapping[str, float | None]]) -> Straggler | None:
    """A rank that was much slower than the others at each of the last logging steps."""
    last = [(row[RANK], row[SLOWDOWN] or 0.0, row[COST] or 0.0) for row in rows if row.get(RANK) is not None][-WINDOWS:]
    ranks = {rank for rank, _, _ in last}
    if len(last) < WINDOWS or len(ranks) > 1:
        return None
    if any(slowdown < SLOW or cost < COST_PERCENT for _, slowdown, cost in last):
        return None
    return Straggler(int(last[-1][0] or 0), last[-1][1])
