"""The progress bar of a preparation, with the rates of text and tokens."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Meter:
    """Shows how much of `disk_bytes` (None: not known) was read; rates are of this start alone."""

    def __init__(self, console: Console, disk_bytes: int | None) -> None:
        self._progress = Progress(
            TextColumn("tokenising"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rates]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=console)  # fmt: skip
        self._task = self._progress.add_task("", total=disk_bytes, rates="")
        self._text_bytes = self._tokens = 0
        self._start = time.monotonic()

    def advance(self, text_bytes: int, tokens: int, disk_bytes: int) -> None:
        """Count a unit; one of an earlier start has no text and no tokens."""
        self._text_bytes += text_bytes
        self._tokens += tokens
        seconds = max(1e-9, time.monotonic() - self._start)
        rates = f"{self._text_bytes / 1e6 / seconds:.1f} MB/s  {self._tokens / 1e6 / seconds:.2f} M tokens/s"
        self._progress.update(self._task, advance=disk_bytes, rates=rates)

    def __enter__(self) -> "Meter":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
