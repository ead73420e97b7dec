"""Which old checkpoints go."""

from collections.abc import Callable
from pathlib import Path

from dgpt.checkpoint.best import best_of
from dgpt.checkpoint.files import delete_folder, step_folders, step_of
from dgpt.checkpoint.read import problem_of
from dgpt.storage import Place

Judge = Callable[[Path], str | None]


def doomed(
    root: Path, step: int, keep_last: int, keep_every: int, in_use: Place | None = None, *,
    judge: Judge = problem_of, judge_kept: Judge | None = None,
) -> list[Path]:  # fmt: skip
    """What goes, newest first, after the checkpoint of `step` is there; `prune` says the rule.

    judge: what is wrong with a checkpoint, None if nothing; judge_kept: a stricter one for those that count as kept.
    Neither is asked more than it has to be.
    """
    reached = [folder for folder in step_folders(root) if (step_of(folder) or 0) <= step]
    kept: list[Path] = []
    damaged: list[Path] = []
    for folder in reached:
        if len(kept) < keep_last:
            (damaged if (judge_kept or judge)(folder) else kept).append(folder)
    old = [folder for folder in reached if kept and (step_of(folder) or 0) < (step_of(kept[-1]) or 0)]
    spared = (in_use, best_of(root.parent), *damaged)
    free = (f for f in old if f not in spared and not (keep_every and (step_of(f) or 0) % keep_every == 0))
    return [folder for folder in free if judge(folder) is None]


def prune(
    root: Path, step: int, keep_last: int, keep_every: int, attempt: str, *, in_use: Place | None = None,
    judge: Judge = problem_of, judge_kept: Judge | None = None,
) -> list[Path]:  # fmt: skip
    """Keep the newest `keep_last` checkpoints that are whole, and the multiples of `keep_every` (0: none).

    Damaged ones do not count, and are left for a person to look at; so are those of later steps, which belong to a
    future that this run went back from, `in_use`, from which this start of the run continued, and the best one
    (best.json). Returns what was deleted. Raises OSError if one cannot be.
    """
    gone = doomed(root, step, keep_last, keep_every, in_use, judge=judge, judge_kept=judge_kept)
    for folder in gone:
        delete_folder(folder, attempt)
    return gone
