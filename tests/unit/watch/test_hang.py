"""Who hangs, from what all ranks say: the one that is stopped, or behind, or waits for a disk; and when nobody does."""

from typing import Any

import pytest

from dgpt.watch.hang import Hang, Seen, find


def seen(rank: int, **changes: Any) -> Seen:
    """A rank of two nodes that has been waiting for 7 s, and may for 5 s."""
    facts: dict[str, Any] = {"node": f"n{rank // 2}", "pid": 100 + rank, "step": 56, "phase": "step", "progress": 400,
                             "patience": 5.0, "still": 7.0, "stuck": 7.0, "state": "sleeping"}  # fmt: skip
    return Seen(rank=rank, **{**facts, **changes})


def ranks(**of_rank_3: Any) -> list[Seen]:
    return [seen(0), seen(1), seen(2), seen(3, **of_rank_3)]


def found(ranks: list[Seen], world_size: int = 4) -> Hang:
    hang = find(ranks, world_size)
    assert hang is not None
    return hang


@pytest.mark.parametrize(
    ("changes", "place", "why"),
    [
        ({"phase": "backward", "progress": 399}, "'backward' of step 57", ""),
        ({"state": "stopped"}, "'step' of step 57", ": its process is stopped (SIGSTOP)"),
        ({"state": "disk-sleep"}, "'step' of step 57", ": it waits for a disk or a file server"),
        ({"phase": "checkpoint", "step": 57, "progress": 390}, "'checkpoint' after step 57", ""),
        ({"phase": "start", "step": 0, "progress": 1}, "the start, before its first step", ""),
    ],
)
def test_the_missing_rank_is_named(changes: dict[str, Any], place: str, why: str) -> None:
    text = f"dgpt: hang: rank 3 on n1 (process 103) has stood in {place} for 7 s{why}; 3 ranks wait for it"
    assert found(ranks(**changes)) == Hang(text, "n1", (3,), 7.0)


def test_a_stopped_rank_counts_before_one_that_is_behind() -> None:
    assert found([seen(0, progress=399), seen(1), seen(2), seen(3, state="stopped")]).ranks == (3,)


def test_all_ranks_of_a_silent_node_are_missing_together() -> None:
    silent = {"state": "silent", "still": 9.0, "stuck": 9.0, "phase": "data"}
    hang = found([seen(0), seen(1), seen(2, **silent), seen(3, **silent)])
    assert hang.text.startswith("dgpt: hang: ranks 2, 3 on n1 have stood in 'data' of step 57 for 9 s: ")
    assert hang.text.endswith("the agent of its node is silent, too; 2 ranks wait for them")
    assert hang.node == "n1"


def test_ranks_that_nobody_knows_any_more_are_missing() -> None:
    hang = found(ranks()[:2])
    assert hang.text == ("dgpt: hang: ranks 2, 3 on a node that has left have been missing for 7 s: its node has left; "
                         "2 ranks wait for them")  # fmt: skip
    assert hang.node == "", "who is left is not to blame"


def test_where_all_stand_at_one_place_nobody_is_blamed() -> None:
    hang = found(ranks())
    assert hang.text == "dgpt: hang: all 4 ranks have stood in 'step' of step 57 for 7 s; their stacks are in the logs"
    assert (hang.node, hang.ranks) == ("", ())


@pytest.mark.parametrize(
    "others",
    [
        {"still": 3.0, "stuck": 3.0},  # a stall
        {"still": 0.1, "stuck": 0.1},
        {"still": 4.9, "stuck": 4.9, "state": "stopped"},
        {"still": 7.0, "stuck": 7.0, "patience": 600.0},  # in a phase that may take long
        {"still": 7.0, "stuck": 7.0, "patience": float("inf")},  # nobody wants to know
    ],
)
def test_no_alarm_before_the_patience_ends(others: dict[str, Any]) -> None:
    assert find([seen(rank, **others) for rank in range(4)], 4) is None


def test_no_alarm_while_the_one_that_is_behind_may_take_its_time() -> None:
    """As rank 3 saves for the first time, or waits for a save, which it shows by signs of life."""
    assert find(ranks(progress=390, phase="checkpoint", patience=600.0), 4) is None
    assert find(ranks(progress=390, phase="checkpoint", still=0.4), 4) is None
    assert found(ranks(progress=390, phase="checkpoint", patience=600.0, state="stopped")).ranks == (3,)


@pytest.mark.parametrize("alive", [{"still": 0.4}, {"patience": 600.0}])
def test_no_alarm_while_one_of_those_at_the_same_place_works(alive: dict[str, Any]) -> None:
    """As rank 3 writes long answers in an evaluation, and the others have theirs."""
    assert find(ranks(**alive, phase="evaluate"), 4) is None


def test_no_alarm_while_a_rank_moves_on() -> None:
    """A rank that long gives no sign is slow, or its file is late, when the others do not wait for it."""
    assert find([seen(0, still=0.0, stuck=0.0), seen(1, still=1.0, stuck=1.0), seen(2), seen(3)], 4) is None


def test_signs_of_life_of_those_that_wait_for_a_save_are_no_progress() -> None:
    waiting = {"phase": "checkpoint", "still": 0.4}
    ranks = [*(seen(rank, **waiting) for rank in range(3)), seen(3, phase="checkpoint", state="stopped")]
    assert found(ranks).ranks == (3,)


def test_ranks_that_have_ended_wait_for_nobody() -> None:
    ended = {"phase": "end", "patience": float("inf"), "still": 100.0, "stuck": 100.0, "progress": 500}
    assert find([seen(0, **ended), seen(1, **ended)], 2) is None
    assert found([seen(0, **ended), seen(1, progress=499)], 2).text.startswith("dgpt: hang: all 1 rank")


def test_a_thousand_ranks_make_a_sentence() -> None:
    hang = found([seen(rank, progress=399 if rank > 500 else 400, node="n") for rank in range(1000)], 1000)
    assert "ranks 501, 502, 503" in hang.text
    assert "516 and 483 more on n have stood" in hang.text
    assert hang.text.endswith("501 ranks wait for them")
