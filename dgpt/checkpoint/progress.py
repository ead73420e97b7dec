"""A bar of bytes on stderr, for what takes minutes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


@contextmanager
def byte_bar(title: str, total: int, *, enabled: bool) -> Iterator[Advance]:
    """Gives a function that takes the bytes done since its last call, from any thread."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(title, markup=False), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=not enabled) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
