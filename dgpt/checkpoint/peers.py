"""The ranks that load a checkpoint together, and which of them verifies which file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dgpt.checkpoint.format import CheckpointError
from dgpt.errors import StorageError, UserError


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class Peers:
    """This rank among those that load at the same time; by default it is the only one."""

    rank: int = 0
    gather: Callable[[Any], list[Any]] = _alone  # every rank's value on every rank, in the order of ranks (collective)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A block that all peers enter: a CheckpointError or StorageError of one is raised on all, after the block.

        A StorageError comes first: it is no reason to take another checkpoint.
        """
        problem: UserError | None = None
        try:
            yield
        except (CheckpointError, StorageError) as error:
            problem = error
        problems = filter(None, self.gather(problem))
        if first := min(problems, key=lambda error: isinstance(error, CheckpointError), default=None):
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
