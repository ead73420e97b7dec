"""Which old checkpoints go."""

from pathlib import Path

from dgpt.checkpoint.files import delete_folder, step_folders, step_of
from dgpt.checkpoint.read import problem_of


def prune(root: Path, step: int, keep_last: int, keep_every: int, attempt: str) -> None:
    """After the checkpoint of `step` is there: keep the newest `keep_last` and the multiples of `keep_every` (0: none).

    Damaged ones do not count, and are left for a person to look at; so are those of later steps, which belong to a
    future that this run went back from. Raises OSError if one cannot be deleted.
    """
    reached = [folder for folder in step_folders(root) if (step_of(folder) or 0) <= step]
    whole = [folder for folder in reached if problem_of(folder) is None]
    for folder in whole[keep_last:]:
        if not (keep_every and (step_of(folder) or 0) % keep_every == 0):
            delete_folder(folder, attempt)
