"""Long-lived worker processes. Each has its own pipe, so that the end of the parent, even by kill -9, ends them too."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Generic, Self, TypeVar, cast

from dgpt.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerPool(Generic[Item, Result]):
    """`make()` runs once in each process and gives the function that does the work there."""

    def __init__(self, size: int, make: Callable[[], Callable[[Item], Result]]) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy the threads' locks of the progress bar
        pairs = [context.Pipe() for _ in range(size)]
        self._workers: list[Connection] = [ours for ours, _ in pairs]
        self._processes = [context.Process(target=_work, args=(theirs, make), daemon=True) for _, theirs in pairs]
        for process, (_, theirs) in zip(self._processes, pairs, strict=True):
            process.start()
            theirs.close()

    def map_unordered(self, items: Iterable[Item]) -> Iterator[Result]:
        """Results as they come. Raises what the work raised: UserError as it was, all else with its stack as text."""
        items = iter(items)
        idle, busy = list(self._workers), set[Connection]()
        following = next(items, None)
        while following is not None or busy:
            while idle and following is not None:
                worker = idle.pop()
                worker.send(following)
                busy.add(worker)
                following = next(items, None)  # read ahead while the workers are at it
            for worker in cast(list[Connection], wait(list(busy))):
                busy.remove(worker)
                idle.append(worker)
                yield _receive(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for worker, process in zip(self._workers, self._processes, strict=True):
            worker.close()
            if kind is not None:
                process.terminate()
            process.join()


def _receive(worker: Connection) -> Result:  # type: ignore[type-var]
    try:
        error, result = worker.recv()
    except (EOFError, ConnectionError):
        raise UserError("a process that tokenises was killed from outside",
                        rule="each process needs memory for its unit of text",
                        fix="lower data.num_workers and run `dgpt prepare` again: it continues") from None  # fmt: skip
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _work(parent: Connection, make: Callable[[], Callable[[Item], Result]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    try:
        work = make()
        while True:
            parent.send((None, work(parent.recv())))
    except (EOFError, ConnectionError):
        return  # the parent is done, or gone
    except UserError as error:
        _report(parent, error)
    except Exception:
        _report(parent, RuntimeError(traceback.format_exc()))


def _report(parent: Connection, error: Exception) -> None:
    with suppress(ConnectionError):  # the parent is gone
        parent.send((error, None))
