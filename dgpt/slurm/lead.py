"""How long before the time limit a job must be asked to save: from what its run folder has measured."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SHORTEST_LEAD_SECONDS = 120
LATE_SECONDS = 60  # Slurm looks at time limits every 30 seconds
MANIFESTS = 3  # newest checkpoints whose time counts
HEAD_BYTES = 1024  # of a manifest, in which the fields below stand; the rest may be long
TAIL_BYTES = 1 << 20
_SECONDS = re.compile(rb'"seconds":([\d.]+)')
_RANKS = re.compile(rb'"world_size":(\d+)')


@dataclass(frozen=True)
class Pace:
    """Times of a run, seconds, and where the last two are from, for people."""

    pause: float  # the longest evaluation
    step: float
    save: float
    step_source: str
    save_source: str

    @property
    def needed(self) -> float:
        """Seconds from the signal to the end: an evaluation may be in the way, or a save; ranks stop one step after
        they are asked, and save; and what was saved is read back."""
        return self.pause + 2 * self.step + 3 * self.save

    @property
    def lead(self) -> int:
        """For --signal, which may come late."""
        return round(max(LATE_SECONDS + self.needed, SHORTEST_LEAD_SECONDS))

    def __str__(self) -> str:
        pause = f", an evaluation {self.pause:.3g} s" if self.pause else ""
        return (
            f"a step takes {self.step:.3g} s ({self.step_source}){pause}, a save {self.save:.3g} s ({self.save_source})"
        )


def measured(run_dir: Path, ranks: int = 0) -> Pace | None:
    """None if the run has not measured both."""
    save, step = measured_save(run_dir, ranks), measured_step(run_dir)
    return Pace(measured_pause(run_dir), step, save[0], "measured", save[1]) if save and step else None


def measured_save(run_dir: Path, ranks: int = 0) -> tuple[float, str] | None:
    """The slowest of the newest saves, for `ranks` processes (0: as many as wrote it); None if none was measured.

    With fewer processes than wrote it each has more to write, and is taken to need so much longer.
    """
    found = list(_saves(run_dir, ranks))
    return max(found) if found else None


def _saves(run_dir: Path, ranks: int) -> Iterator[tuple[float, str]]:
    for path in sorted((run_dir / "checkpoints").glob("step_*/manifest.json"), reverse=True)[:MANIFESTS]:
        try:
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
        except OSError:  # pruned in the meantime
            continue
        seconds, wrote = _SECONDS.search(head), _RANKS.search(head)
        if seconds and wrote:
            before = int(wrote[1])
            scale = max(1.0, before / (ranks or before))
            source = f"measured at {path.parent.name}" + f", by {before} ranks instead of {ranks}" * (scale > 1)
            yield float(seconds[1]) * scale, source


def measured_step(run_dir: Path) -> float | None:
    """Of the newest row of metrics.jsonl that has a speed."""
    paces = [row.get("speed/seconds_per_step") for row in tail_rows(run_dir / "metrics.jsonl")]
    return next((pace for pace in reversed(paces) if pace), None)


def measured_pause(run_dir: Path) -> float:
    """The longest evaluation of the newest rows of metrics.jsonl."""
    rows = tail_rows(run_dir / "metrics.jsonl")
    return max((row.get("time/evaluate_seconds") or 0.0 for row in rows), default=0.0)


def tail_rows(path: Path) -> Iterator[Mapping[str, float | None]]:
    """The last rows, as in dgpt.train.rows, which would import torch."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:  # torn
                continue
            if isinstance(row, dict):
                yield row
