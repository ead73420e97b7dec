"""Functions in forked processes, each with a time limit; they give back JSON."""

import json
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

LIMIT_SECONDS = 120


class Result(NamedTuple):
    """value and error are None if the process was killed by `signal`."""

    value: Any = None
    error: str | None = None
    signal: int = 0


class Child:
    """`function` in a process of its own: quick, because torch is there already."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._pipe, writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _be_child(function, writing)
        os.close(writing)

    def result(self) -> Result:
        """Wait for its end."""
        with open(self._pipe, "rb") as pipe:
            content = pipe.read()
        _, status = os.waitpid(self._pid, 0)
        if os.WIFSIGNALED(status):
            return Result(signal=os.WTERMSIG(status))
        return Result(*json.loads(content))


def in_turn(functions: Iterable[Callable[[], Any]], at_once: int) -> Iterator[Result]:
    """The results in the order of the functions, `at_once` of which run side by side."""
    running: deque[Child] = deque()
    for function in functions:
        if len(running) == at_once:
            yield running.popleft().result()
        running.append(Child(function))
    while running:
        yield running.popleft().result()


def _be_child(function: Callable[[], Any], writing: int) -> None:
    signal.alarm(LIMIT_SECONDS)  # the end of a process that hangs
    result = Result()
    try:
        result = Result(function())
    except BaseException as error:  # everything is for the parent to judge
        result = Result(error="".join(traceback.format_exception_only(error)).strip())
    with open(writing, "wb") as pipe:
        pipe.write(json.dumps(result[:2]).encode())
    os._exit(0)
