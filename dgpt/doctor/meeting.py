"""How the nodes of a job exchange their readings, and try their network: by a store that the first node hosts.

No collective is needed for a word between nodes, so a node that fails or is silent stops nobody, and is named. What can
hang (a device, an all-reduce) runs in a process of its own that is killed when it takes too long.
"""

import json
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from dgpt.doctor.rules import Problem, names
from dgpt.doctor.runtime import Place

ARRIVE_SECONDS = 60.0  # for all nodes to come: the first import of torch from a cold file system takes long
REDUCE_SECONDS = 30.0  # NCCL needs 5 to 10 s to connect a thousand GPUs
PAIR_SECONDS = 8.0
ELEMENTS = 2**18  # fp32 of the all-reduce of each rank: 1 MiB
UNREACHED = (
    "{nodes} gave no word within {seconds:.0f} s: not started, hanging, or without a network to {first} ({address})"
)


class Meeting:
    """All nodes of a job, from one of them. Every node calls the same methods in the same order."""

    def __init__(self, place: Place, arrive_seconds: float = ARRIVE_SECONDS) -> None:
        """Raises OSError if the first node cannot be reached."""
        self.arrive_seconds = arrive_seconds
        try:
            self.store = TCPStore(place.address, place.port, is_master=place.is_first, wait_for_workers=False,
                                       timeout=timedelta(seconds=arrive_seconds))  # fmt: skip
        except dist.DistError as error:
            raise OSError(str(error).partition("\n")[0]) from None
        self.place = replace(place, port=self.store.port)  # 0 was any

    def tell(self, what: str, value: Any) -> None:
        """Of this node."""
        self.store.set(f"{what}/{self.place.index}", json.dumps(value))

    def hear(self, what: str, nodes: Iterable[int], seconds: float) -> dict[int, Any]:
        """Node -> what it told; without the nodes that gave no word in time."""
        deadline, found = time.monotonic() + seconds, dict[int, Any]()
        for index in nodes:
            left = max(deadline - time.monotonic(), 0.05)
            with suppress(dist.DistError):
                self.store.wait([f"{what}/{index}"], timedelta(seconds=left))
                found[index] = json.loads(self.store.get(f"{what}/{index}"))
        return found

    def agree(self, what: str, decide: Callable[[], Any], seconds: float) -> Any:
        """What `decide` returns on the first node, on all nodes. Raises OSError if the first node is silent."""
        if self.place.is_first:
            self.store.set(what, json.dumps(decide()))
        try:
            self.store.wait([what], timedelta(seconds=seconds))
            return json.loads(self.store.get(what))
        except dist.DistError:
            raise OSError(f"no word from the first node within {seconds:.0f} s") from None

    def leave(self, present: Iterable[int]) -> None:
        """The host of the store is the last to go."""
        self.tell("left", True)
        if self.place.is_first:
            self.hear("left", present, PAIR_SECONDS)


@dataclass(frozen=True)
class Rank:
    """One process of an all-reduce."""

    place: Place
    device: int  # -1: the CPU
    rank: int
    world: int
    name: str  # of this all-reduce in the store
    seconds: float


def all_reduce(rank: Rank) -> float:
    """Sum over all ranks; seconds that the second one took. Raises ValueError for a wrong sum, or what torch raises."""
    patience = timedelta(seconds=rank.seconds)
    store = TCPStore(rank.place.address, rank.place.port, is_master=False, timeout=patience)
    device = torch.device("cpu") if rank.device < 0 else torch.device("cuda", rank.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if rank.device < 0 else "nccl", store=PrefixStore(rank.name, store),
                            rank=rank.rank, world_size=rank.world, timeout=patience)  # fmt: skip
    begin, wanted = 0.0, rank.world * (rank.world + 1) // 2
    for _ in range(2):  # the first one connects
        begin = time.perf_counter()
        x = torch.full((ELEMENTS,), rank.rank + 1.0, device=device)
        dist.all_reduce(x)
        low, high = x.min().item(), x.max().item()
        if (low, high) != (wanted, wanted):
            raise ValueError(f"the sum over {rank.world} ranks is {low:g} to {high:g} instead of {wanted}")
    return time.perf_counter() - begin


def in_processes(work: Callable[[Any], Any], items: Sequence[Any], seconds: float) -> list[tuple[Any, str]]:
    """(result, error) of `work(item)` for each item, at once, each in a process; killed after so many seconds.

    Processes are forked: they need not import torch again, and no device has been touched before.
    """
    context, started = multiprocessing.get_context("fork"), []
    for item in items:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(work, item, theirs), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of a fork beside the store's thread
            process.start()
        theirs.close()
        started.append((process, ours))
    deadline, found = time.monotonic() + seconds, []
    for process, pipe in started:
        found.append(_result(pipe, max(deadline - time.monotonic(), 0.0), seconds))
        process.kill()
        process.join()
    return found


def _result(pipe: Connection, left: float, seconds: float) -> tuple[Any, str]:
    if not pipe.poll(left):
        return None, f"no answer within {seconds:.0f} s"
    try:
        result, error = json.loads(pipe.recv_bytes())
    except EOFError:
        return None, "its process died"
    return result, error


def _answer(work: Callable[[Any], Any], item: Any, pipe: Connection) -> None:
    torch.set_num_threads(1)  # OpenMP waits for ever, after a fork, for the threads that it had before
    try:
        answer = [work(item), ""]
    except Exception as error:
        answer = [None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"]
    pipe.send_bytes(json.dumps(answer).encode())


def pairings(nodes: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Rounds of pairs: each node meets its two neighbours on a ring, and one on the other side of it."""
    count = len(nodes)
    ring = [(nodes[i], nodes[(i + 1) % count]) for i in range(count)] if count > 1 else []
    across = [(nodes[i], nodes[i + count // 2]) for i in range(count // 2)]
    rounds: list[list[tuple[int, int]]] = []
    for a, b in dict.fromkeys(tuple(sorted(pair)) for pair in (*ring, *across)):
        free = next((pairs for pairs in rounds if not {a, b} & {node for pair in pairs for node in pair}), None)
        if free is None:
            rounds.append(free := [])
        free.append((a, b))
    return rounds


def guilty(failed: Iterable[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
    """(nodes, links): whom to blame for pairs that failed. A node has several to its name; a single pair is a link."""
    left, nodes = set(failed), list[int]()
    while left:
        counts = {node: sum(node in pair for pair in left) for pair in left for node in pair}
        worst = max(sorted(counts), key=lambda node: counts[node])
        if counts[worst] < 2:
            break
        nodes.append(worst)
        left = {pair for pair in left if worst not in pair}
    return sorted(nodes), sorted(left)


def silent(place: Place, present: Iterable[int], all_names: Sequence[str], seconds: float) -> Problem | None:
    """The problem of nodes that gave no word. Where most are silent it is the first one that is not reached."""
    here = set(present)
    missing = [index for index in range(place.nodes) if index not in here]
    if not missing:
        return None
    lonely = len(missing) > len(here)
    suspects = [all_names[0]] if lonely else [all_names[index] for index in missing]
    text = UNREACHED.format(nodes=names([all_names[index] for index in missing]), seconds=seconds, first=all_names[0],
                            address=f"{place.address}:{place.port}")  # fmt: skip
    return Problem(text, "look at the output of the job for these nodes; tell the administrators", tuple(suspects))
