"""Which checkpoint a run continues from."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from dgpt.checkpoint.files import FOLDER, step_folders, step_of
from dgpt.checkpoint.format import MANIFEST, CheckpointError, Manifest
from dgpt.checkpoint.read import check_sizes, read_manifest
from dgpt.storage import Place, place

NO_NAME = "not the name of a checkpoint, which is step_ and its step in 8 digits"
_PASSING = re.compile(r"\.(tmp|old)-")


@dataclass(frozen=True)
class Found:
    """A checkpoint that can be loaded."""

    folder: Place
    manifest: Manifest
    skipped: tuple[str, ...] = ()  # newer ones that are not whole, and strange names, each with its reason


def find_latest(run_dir: str | Place, known_bad: Mapping[Place, str] | None = None) -> Found | None:
    """The newest checkpoint with a valid manifest and all files of the right size; None if there are no checkpoints.

    Hashes are checked when a file is read. known_bad: folders to skip, and why: the `summary` of what `load` raised.
    Raises CheckpointError if there are checkpoints but none is whole: training never restarts at step 0 in silence.
    """
    skipped: list[str] = []
    root = place(run_dir) / FOLDER
    for folder in step_folders(root):
        if known_bad and folder in known_bad:
            skipped.append(known_bad[folder])
            continue
        try:
            manifest = read_manifest(folder)
            check_sizes(folder, manifest)
            return Found(folder, manifest, (*skipped, *(f"{root / name}: {NO_NAME}" for name in renamed(root))))
        except CheckpointError as error:
            skipped.append(error.summary)
    if skipped:
        reasons = "".join(f"\n  - {reason}" for reason in skipped)
        fix = "restore a checkpoint from a copy; to start anew at step 0, give another run_dir, or move this one away"
        raise CheckpointError(root, f"none of the {len(skipped)} checkpoints here is whole:{reasons}", fix=fix)
    if names := renamed(root):
        fix = "give it its name again, step_ and its step in 8 digits; to start anew, give another run_dir"
        raise CheckpointError(root, f"holds checkpoints under names that are none: {', '.join(names)}", fix=fix)
    return None


def renamed(root: Place) -> list[str]:
    """Folders with a checkpoint in them whose names are none of a checkpoint, nor of one that is saved or deleted."""
    if not root.is_dir():
        return []
    others = (folder for folder in root.iterdir() if step_of(folder) is None and not _PASSING.search(folder.name))
    return sorted(folder.name for folder in others if _holds_one(folder))


def _holds_one(folder: Place) -> bool:
    with suppress(OSError):  # of somebody else, or on a disk that fails: none that a run would use
        return (folder / MANIFEST).exists()
    return False


def open_checkpoint(path: str | Place, known_bad: Mapping[Place, str] | None = None) -> Found:
    """A checkpoint folder itself, or the newest whole checkpoint of a run folder. Raises CheckpointError if none."""
    path = place(path)
    if (path / MANIFEST).exists():
        manifest = read_manifest(path)
        check_sizes(path, manifest)
        return Found(path, manifest)
    found = find_latest(path, known_bad)
    if found is None and (path / "config.json").exists():
        raise CheckpointError(path, "is a model of transformers", fix=f"dgpt import {path} NEW_FOLDER, and give that")
    if found is None:
        fix = f"give a run_dir, or a folder run_dir/{FOLDER}/step_XXXXXXXX"
        raise CheckpointError(path, "is neither a checkpoint nor a run folder with checkpoints",
                              fix=f"give {path.parent}" if path.name == FOLDER else fix)  # fmt: skip
    return found
