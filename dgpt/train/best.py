"""Which evaluation was the best so far, and whether it is enough. Replayed from metrics.jsonl when a run resumes."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from dgpt.config.finetune import BestConfig
from dgpt.train.metrics import RESULT_TAGS
from dgpt.train.rows import read_rows

LOWER_IS_BETTER = ("loss", "perplexity")


class Best:
    """The course of one result over the evaluations of a run: a function of what was measured so far."""

    def __init__(self, config: BestConfig, measured: Iterable[tuple[int, float]] = ()) -> None:
        """measured: (step, result), of earlier starts of the run."""
        self.config = config
        self.step, self.value = 0, math.nan
        self.worse = 0  # evaluations since
        for step, value in measured:
            self.note(step, value)

    def note(self, step: int, value: float) -> bool:
        """Whether this is the best so far."""
        gain = self.value - value if self.config.metric in LOWER_IS_BETTER else value - self.value
        better = math.isfinite(value) and (math.isnan(self.value) or gain > self.config.min_delta)
        if better:
            self.step, self.value = step, value
        self.worse = 0 if better else self.worse + 1
        return better

    @property
    def enough(self) -> bool:
        return 0 < self.config.patience <= self.worse

    def __str__(self) -> str:
        return f"{self.config.metric} {self.value:.4f} at step {self.step}"


def measured(path: Path, metric: str, last_step: int) -> Iterator[tuple[int, float]]:
    """Each (step, result) up to `last_step` in a metrics.jsonl."""
    tag = RESULT_TAGS.get(metric, f"validation/{metric}")
    for row in read_rows(path) if path.is_file() else ():
        if tag in row and (row["step"] or 0) <= last_step:
            value = row[tag]
            yield int(row["step"] or 0), math.nan if value is None else value
