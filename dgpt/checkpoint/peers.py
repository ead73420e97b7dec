"""The ranks that load a checkpoint together, and which of them verifies which file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dgpt.checkpoint.format import CheckpointError


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class Peers:
    """This rank among those that load at the same time; by default it is the only one."""

    rank: int = 0
    gather: Callable[[Any], list[Any]] = _alone  # every rank's value on every rank, in the order of ranks (collective)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A block that all peers enter: a CheckpointError of one of them is raised on all, after the block."""
        problem: CheckpointError | None = None
        try:
            yield
        except CheckpointError as error:
            problem = error
        if first := next(filter(None, self.gather(problem)), None):
            raise first


ALONE = Peers()


def share_out(touched: list[list[int]], sizes: list[int]) -> list[list[int]]:
    """Give each file to one of the ranks that read from it, so that each verifies about the same number of bytes.

    touched: for each rank, the files that it reads from. sizes: of each file, in bytes. Returns the files of each rank.
    """
    readers: dict[int, list[int]] = {}
    for rank, files in enumerate(touched):
        for file in files:
            readers.setdefault(file, []).append(rank)
    shares: list[list[int]] = [[] for _ in touched]
    load = [0] * len(touched)
    for file in sorted(readers, key=lambda file: (len(readers[file]), -sizes[file], file)):
        rank = min(readers[file], key=lambda rank: (load[rank], rank))
        shares[rank].append(file)
        load[rank] += sizes[file]
    return shares
