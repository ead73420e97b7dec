"""Workers do all the work, and what goes wrong in one arrives as it was."""

import os
import signal
from collections.abc import Callable
from functools import partial

import pytest

from dgpt.data.pool import WorkerPool
from dgpt.errors import UserError


def make_adder(offset: int) -> Callable[[int], tuple[int, int]]:
    return partial(add, offset)


def add(offset: int, n: int) -> tuple[int, int]:
    if n == 13:
        raise UserError("thirteen", rule="none", fix="another")
    if n == 14:
        raise ZeroDivisionError("fourteen")
    if n == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    return n + offset, os.getpid()


def test_every_item_is_done_once_over_several_processes() -> None:
    with WorkerPool(2, partial(make_adder, 100)) as pool:
        results = list(pool.map_unordered(range(13)))
        assert sorted(result for result, _ in results) == list(range(100, 113))
        assert len({pid for _, pid in results} - {os.getpid()}) == 2
        assert list(pool.map_unordered([])) == []


@pytest.mark.parametrize(
    ("item", "error", "text"),
    [
        (13, UserError, "thirteen\n  rule: none\n  fix:  another"),
        (14, RuntimeError, "ZeroDivisionError: fourteen"),
        (15, UserError, "was killed from outside"),
    ],
)
def test_failures_arrive(item: int, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text), WorkerPool(1, partial(make_adder, 0)) as pool:
        list(pool.map_unordered([1, item]))
