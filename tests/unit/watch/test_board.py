"""The files by which agents of several nodes compare their ranks."""

from pathlib import Path
from typing import Any

from dgpt.watch.board import FOLDER, Board, nodes_of_ranks
from dgpt.watch.hang import Hang, Seen

HANG = Hang("dgpt: hang: rank 1", "n1", (1,), 7.0)


def seen(rank: int, **changes: Any) -> Seen:
    facts: dict[str, Any] = {"node": f"n{rank}", "pid": 100 + rank, "step": 5, "phase": "data", "progress": 40,
                             "patience": 5.0, "still": 0.5, "stuck": 1.0, "state": "running"}  # fmt: skip
    return Seen(rank=rank, **{**facts, **changes})


def test_the_first_agent_sees_the_ranks_of_the_others(tmp_path: Path) -> None:
    boards = [Board(str(tmp_path), "a", rank) for rank in range(3)]
    for rank, board in enumerate(boards):
        board.write([seen(rank)])
    assert sorted(boards[0].others(1.0), key=lambda rank: rank.rank) == [seen(1), seen(2)]
    assert nodes_of_ranks(tmp_path) == {0: "n0", 1: "n1", 2: "n2"}
    boards[2].leave()
    assert boards[0].others(1.0) == [seen(1, still=1.5, stuck=2.0)]


def test_a_node_that_writes_no_more_grows_old_and_is_silent(tmp_path: Path) -> None:
    first, second = Board(str(tmp_path), "a", 0), Board(str(tmp_path), "a", 1)
    second.write([seen(1)])
    ages = [first.others(0.5)[0] for _ in range(6)]
    assert [age.still for age in ages] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert [age.state for age in ages] == ["running"] * 5 + ["silent"]
    second.write([seen(1)])
    assert first.others(0.5) == [seen(1)]


def test_a_file_that_is_being_written_is_read_as_it_was(tmp_path: Path) -> None:
    first, second = Board(str(tmp_path), "a", 0), Board(str(tmp_path), "a", 1)
    second.write([seen(1)])
    first.others(0.5)
    (tmp_path / FOLDER / "node_00001.json").write_text('{"attempt": "a", "lo')
    assert first.others(0.5) == [seen(1, still=1.0, stuck=1.5)]


def test_another_start_does_not_count_and_is_swept(tmp_path: Path) -> None:
    old = [Board(str(tmp_path), "old", rank) for rank in (0, 4)]
    for board in old:
        board.write([seen(4)])
    old[0].announce(HANG)
    first, second = Board(str(tmp_path), "new", 0), Board(str(tmp_path), "new", 1)
    assert (first.others(1.0), second.announced()) == ([], None)
    second.write([seen(1)])
    first.announce(None)
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["hang.json", "node_00001.json"]
    assert (first.others(1.0), second.announced()) == ([seen(1)], None)
    old[1].write([seen(4)])  # a node that was cut off and does not know
    assert first.others(1.0)[0].rank == 1


def test_the_word_of_the_first_agent_is_heard_by_all(tmp_path: Path) -> None:
    first, second = Board(str(tmp_path), "a", 0), Board(str(tmp_path), "a", 1)
    for board in (first, second):
        board.write([])
    assert second.announced() is None
    first.announce(None)
    assert second.announced() is None
    first.announce(HANG)
    assert second.announced() == HANG
    first.leave()
    assert second.announced() == HANG


def test_a_good_end_leaves_nothing(tmp_path: Path) -> None:
    boards = [Board(str(tmp_path), "a", rank) for rank in range(2)]
    for board in boards:
        board.write([])
    boards[0].announce(None)
    for board in boards:
        board.leave()
    assert list(tmp_path.iterdir()) == []
