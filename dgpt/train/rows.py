"""metrics.jsonl: one JSON object per line, in the order of the steps, whatever happened to the process before."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from dgpt.train.append import AppendFile


class RowFile:
    """Appends rows to `path`, after dropping what a resumed run will write again."""

    def __init__(self, path: Path, start_step: int) -> None:
        """Keep the rows up to `start_step`; rows beyond it and a line torn by kill -9 go, in one atomic replacement.

        At step 0 all would go: then the file is kept under another name (`earlier`).
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if start_step == 0 and (found := earlier(path)):
            path.replace(found.kept)
        elif path.exists():
            _rewrite(path, start_step)
        self._file = AppendFile(path)

    def add(self, points: Mapping[str, float], step: int) -> None:
        """Append one row: step, Unix time in seconds, and the points; an infinite or undefined value becomes null.

        Raises OSError if it cannot be written; then nothing of it is.
        """
        row = {"step": step, "time": round(time.time(), 3)}
        finite = {name: value if math.isfinite(value) else None for name, value in points.items()}
        self._file.add(json.dumps({**row, **finite}).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


class Earlier(NamedTuple):
    """A start of the run that is not continued."""

    step: int  # of its last row
    kept: Path  # where its rows go


def earlier(path: Path) -> Earlier | None:
    """Of the rows in a metrics.jsonl; None if no step was taken."""
    steps = (int(row.get("step") or 0) for row in read_rows(path)) if path.exists() else ()
    last = max(steps, default=0)
    return Earlier(last, path.with_name(f"{path.stem}.until_{last}{path.suffix}")) if last else None


def read_rows(path: Path) -> Iterator[dict[str, float | None]]:
    """The rows of a metrics.jsonl, without a line that is torn."""
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield row


def _rewrite(path: Path, start_step: int) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for row in read_rows(path):
            if (row.get("step") or 0) <= start_step:
                file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
