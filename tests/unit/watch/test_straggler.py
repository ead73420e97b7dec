"""Which rank is called slow, and how that is said."""

import pytest

from dgpt.watch.straggler import COST, RANK, SLOWDOWN, Straggler, find, points

SLOW = {SLOWDOWN: 1.8, RANK: 5.0, COST: 20.0}


def test_the_slowest_rank_against_the_median() -> None:
    assert points([1.0, 1.1, 0.9, 1.0, 1.0, 1.8, 1.0, 1.0], 4.0) == {SLOWDOWN: 1.8, RANK: 5, COST: pytest.approx(20.0)}


def test_of_two_ranks_the_slower_one_is_compared_with_the_other() -> None:
    assert points([3.0, 1.0], 10.0) == {SLOWDOWN: 3.0, RANK: 0, COST: 20.0}


def test_one_rank_has_nobody_to_compare_with() -> None:
    assert points([1.0], 10.0) == points([], 10.0) == points([0.0, 0.0], 10.0) == {}


@pytest.mark.parametrize(
    "rows",
    [
        [SLOW, SLOW],
        [SLOW, {**SLOW, RANK: 4.0}, SLOW],  # another one each time: noise
        [SLOW, SLOW, {**SLOW, SLOWDOWN: 1.4}],
        [SLOW, SLOW, {**SLOW, COST: 2.0}],  # most of a step is something else
        [{}, {}, {}],
        [{SLOWDOWN: None, RANK: None, COST: None}] * 3,
    ],
)
def test_noise_has_no_name(rows: list[dict[str, float | None]]) -> None:
    assert find(rows) is None


def test_a_rank_that_is_slow_at_three_logging_steps_is_named() -> None:
    validation = {"loss/validation": 2.0}
    found = find([{**SLOW, RANK: 1.0}, SLOW, SLOW, validation, SLOW])
    assert found == Straggler(5, 1.8)
    assert found.text({5: "n3"}) == "n3 (rank 5) is 1.8 x slower than the median before the gradients are summed"
    assert found.text({}).startswith("rank 5 is 1.8 x slower")
