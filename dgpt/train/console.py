"""What a person sees while training: a line per logging step, and a progress bar below it on a terminal."""

import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Self, TextIO

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

REDRAW_SECONDS = 0.2


class Console:
    """Prints lines to `stream` (standard output); on a terminal also draws a bar of the optimizer steps done.

    With `enabled` False (every rank but the first) nothing is shown. Close it at the end, or use it in a `with`.
    """

    def __init__(
        self, *, total_steps: int, start_step: int = 0, enabled: bool = True, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stdout
        self._enabled = enabled
        self._bar: Progress | None = None
        if enabled and self._stream.isatty():
            columns = (TextColumn("training"), BarColumn(None), TaskProgressColumn(), TextColumn("{task.fields[note]}"),
                       TimeElapsedColumn())  # fmt: skip
            # auto_refresh would draw from a thread that takes the GIL from the loop; the loop redraws now and then
            self._bar = Progress(*columns, console=Terminal(file=self._stream), auto_refresh=False, transient=True)
            self._task = self._bar.add_task("", total=total_steps, completed=start_step, note="")
            self._bar.start()
        self._drawn = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def print(self, text: str) -> None:
        """Print `text` on lines of its own, above the bar."""
        if self._bar:
            self._bar.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
        elif self._enabled:
            self._print(text)

    def _print(self, text: str) -> None:
        """A log on a full disk loses lines, and the run goes on."""
        try:
            print(text, file=self._stream, flush=True)
        except BrokenPipeError:
            raise  # its reader wants no more
        except OSError:
            pass

    def note(self, text: str) -> None:
        """Write `text` at the end of the bar."""
        if self._bar:
            self._bar.update(self._task, note=text)

    def advance(self, step: int) -> None:
        """Move the bar to `step` steps done."""
        if not self._bar:
            return
        self._bar.update(self._task, completed=step)
        now = self._bar.get_time()
        if now - self._drawn >= REDRAW_SECONDS:
            self._drawn = now
            self._bar.refresh()

    def close(self) -> None:
        """Take the bar away; lines can still be printed."""
        if self._bar:
            self._bar.stop()
            self._bar = None


def step_line(points: Mapping[str, float], step: int, total_steps: int, eta_seconds: float) -> str:
    """One logging step on one line, from the points that the metrics files get as well."""
    parts = [
        f"step {step:>{len(str(total_steps))}}/{total_steps}",
        f"loss {points['loss/train']:.4f}",
        f"lr {points['optimizer/lr']:.2e}",
        f"grad norm {points['optimizer/grad_norm']:.3f}",
        f"{points['speed/tokens_per_second']:,.0f} tokens/s",
        f"{points['speed/tokens_per_second_per_device']:,.0f}/device",
    ]
    if "speed/mfu_percent" in points:
        parts.append(f"MFU {points['speed/mfu_percent']:.1f}%")
    return " | ".join([*parts, f"ETA {duration(eta_seconds)}"])


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 0:01:05 or 2 days, 3:00:00."""
    return str(timedelta(seconds=round(seconds)))
