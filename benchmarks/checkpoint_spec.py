"""What the checkpoint benchmark compares, and the bars."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.checkpoint_state import Topology

ALONE = Topology(1)
SAVE = ("plain_write", "save", "dcp_save", "dcp_async_save")
LOAD = ("plain_read", "load", "dcp_load")


@dataclass(frozen=True)
class Arm:
    """One operation of all ranks of a topology."""

    operation: str  # a method of checkpoint_rank.Rank
    ranks: Topology
    source: Topology | None = None  # who wrote what is read
    cold: bool | None = None  # whether the page cache holds what is read; None: nothing is

    def __str__(self) -> str:
        by = f"{self.operation}, {self.ranks}"
        return f"{by} of {self.source}" if self.source not in (None, self.ranks) else by


@dataclass(frozen=True)
class Bar:
    """time of `over` / time of `under`, and what it has to be; under None: stall of `over` / one memory copy."""

    over: Arm
    under: Arm | None = None
    least: float | None = None
    most: float | None = None

    def verdict(self, ratio: float) -> str:
        if self.least is not None:
            return f"at least {self.least} {'met' if ratio >= self.least else 'MISSED'}"
        if self.most is not None:
            return f"at most {self.most} {'met' if ratio <= self.most else 'MISSED'}"
        return ""


def arms_of(ranks: int) -> list[Arm]:
    many = Topology(ranks)
    saves = [Arm(what, topology) for topology in (many, ALONE) for what in SAVE]
    loads = [Arm(what, topology, topology, cold) for topology in (many, ALONE) for cold in (True, False)
             for what in LOAD]  # fmt: skip
    resharded = [Arm("load", reader, source, cold) for reader, source in _resharded(ranks) for cold in (True, False)]
    return [*saves, *loads, *resharded]


def bars_of(ranks: int) -> Iterator[Bar]:
    """A resharded load is held against the load of as many processes as can share the work: of readers or of files."""
    for topology in (Topology(ranks), ALONE):
        save, dcp = Arm("save", topology), Arm("dcp_save", topology)
        yield Bar(Arm("plain_write", topology), save, least=0.7)
        yield Bar(save, most=1.2)
        yield Bar(dcp, save)
        yield Bar(Arm("dcp_async_save", topology))
        yield Bar(Arm("dcp_async_save", topology), save)
    for cold in (True, False):
        for topology in (Topology(ranks), ALONE):
            load = Arm("load", topology, topology, cold)
            yield Bar(Arm("plain_read", topology, topology, cold), load, least=0.7)
            yield Bar(Arm("dcp_load", topology, topology, cold), load)
        for reader, source in _resharded(ranks):
            fewer = min(reader, source, key=lambda topology: topology.ranks)
            same = Topology(fewer.ranks)
            yield Bar(Arm("load", reader, source, cold), Arm("load", same, same, cold), most=1.5)


def _resharded(ranks: int) -> list[tuple[Topology, Topology]]:
    """(reader, writer)"""
    many, cut = Topology(ranks), Topology(1, ranks)
    return [(ALONE, many), (many, ALONE), (ALONE, cut), (many, cut), (cut, many)]
