"""A bar on stderr for work that is counted."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


@contextmanager
def count_bar(title: str, total: int, *, enabled: bool = True) -> Iterator[Advance]:
    """Gives a function that takes how many more are done. Shows nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not (enabled and sys.stderr.isatty())) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
