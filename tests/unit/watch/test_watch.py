"""The watch of a node by a clock that the test turns: ranks are real processes, whose heartbeats the test writes."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dgpt.watch.agent import Watch
from dgpt.watch.heartbeat import Heartbeat, Identity, Patience


class Node:
    """An agent with two ranks."""

    def __init__(
        self, folder: Path, processes: list["subprocess.Popen[bytes]"], first: int = 0, world: int = 2
    ) -> None:
        self.now, self.processes = 100.0, processes
        beats = folder / f"node_{first}"
        self.told: list[list[bool]] = []
        self.watch = Watch(beats, f"n{first}", lambda watch: self.told.append(self.killed), lambda: self.now)
        self.hearts = []
        for rank, process in enumerate(processes, first):
            patience = Patience(5, 8)
            self.hearts.append(Heartbeat(beats, Identity(rank, process.pid, world, "a", str(folder), 5.0), patience))
            patience.first_step(1)

    def look(self, seconds: float, *moves: Callable[[], None]) -> None:
        """`seconds` pass, in looks of half a second, before each of which the ranks do `moves`."""
        for _ in range(round(2 * seconds)):
            self.now += 0.5
            for move in moves:
                move()
            self.watch.look()

    def step(self, *ranks: int) -> Callable[[], None]:
        return lambda: [self.hearts[rank].enter(7, phase) for rank in ranks for phase in ("data", "step")] and None

    @property
    def killed(self) -> list[bool]:
        return [process.poll() is not None for process in self.processes]


@pytest.fixture
def sleepers() -> Iterator[list["subprocess.Popen[bytes]"]]:
    processes = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(4)]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def no_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dgpt.watch.agent.stacks", lambda folder, processes, stopped: dict.fromkeys(processes, "a stack")
    )


Sleepers = list["subprocess.Popen[bytes]"]


def test_a_hang_is_found_when_the_patience_ends(tmp_path: Path, sleepers: Sleepers, capsys: object) -> None:
    node = Node(tmp_path, sleepers[:2])
    node.look(20, node.step(0, 1))
    node.hearts[1].enter(8, "data")
    for phase in ("data", "forward"):
        node.hearts[0].enter(8, phase)
    node.look(5)
    assert node.watch.hang is None
    node.look(1)
    assert node.watch.hang is not None
    assert node.watch.hang.ranks == (1,)
    assert node.watch.own_stacks == {0: "a stack", 1: "a stack"}
    assert node.told == [[False, False]], "before the ranks are ended"
    assert [process.wait(30) for process in sleepers[:2]] == [-9, -9]


def test_stalls_and_slow_phases_are_no_hang(tmp_path: Path, sleepers: Sleepers) -> None:
    node = Node(tmp_path, sleepers[:2])
    node.look(8)  # the start may take 8 s
    node.look(1, node.step(0, 1))
    for _ in range(5):
        node.look(3)
        node.look(1, node.step(0, 1))
    node.look(20, node.step(0), node.hearts[1].alive)  # it waits for a save that grows
    assert node.watch.hang is None


def test_an_agent_that_was_frozen_itself_blames_nobody(tmp_path: Path, sleepers: Sleepers) -> None:
    node = Node(tmp_path, sleepers[:2])
    node.look(2, node.step(0, 1))
    node.now += 3600
    node.watch.look()
    node.look(3)
    assert node.watch.hang is None


def test_all_agents_end_their_ranks_for_a_hang_on_one_node(tmp_path: Path, sleepers: Sleepers) -> None:
    nodes = [Node(tmp_path, sleepers[:2], 0, 4), Node(tmp_path, sleepers[2:], 2, 4)]

    def look(seconds: float, *ranks: int) -> None:
        for _ in range(round(2 * seconds)):
            for index, node in enumerate(nodes):
                node.look(0.5, node.step(*(rank - 2 * index for rank in ranks if rank // 2 == index)))

    look(3, 0, 1, 2, 3)
    nodes[0].watch._ended.set()  # so that it does not wait for the other agent, which has no thread here
    look(0.5, 0, 1, 2)
    look(7)
    hangs = [node.watch.hang for node in nodes]
    assert hangs[0] is not None
    assert hangs[0] == hangs[1]
    assert (hangs[0].ranks, hangs[0].node) == ((3,), "n2")
    assert [process.wait(30) for process in sleepers] == [-9] * 4


def test_the_peers_of_a_dead_rank_have_ten_seconds(tmp_path: Path, sleepers: Sleepers) -> None:
    node = Node(tmp_path, sleepers[:2])
    node.look(1, node.step(0, 1))
    sleepers[1].kill()
    node.look(9, node.step(0))
    assert node.killed[0] is False
    node.look(3, node.step(0))
    assert sleepers[0].wait(30) == -9
    assert node.watch.hang is None


def test_a_rank_that_ended_well_ends_nobody(tmp_path: Path, sleepers: Sleepers) -> None:
    node = Node(tmp_path, sleepers[:2])
    node.look(1, node.step(0, 1))
    node.hearts[1].end()
    sleepers[1].kill()
    node.look(30, node.hearts[0].alive)
    assert node.killed[0] is False
    assert node.watch.hang is None
