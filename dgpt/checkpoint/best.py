"""run_dir/best.json: the checkpoint that did best on held-out examples; it is never pruned and stands for the run."""

import json
from collections.abc import Mapping
from pathlib import Path

from dgpt.checkpoint.files import FOLDER, step_of, write_whole
from dgpt.storage import Place

BEST = "best.json"


def write_best(run_dir: Path, folder: Path, results: Mapping[str, float]) -> None:
    """Name a committed checkpoint as the best one, with what it reached."""
    content = {"checkpoint": folder.name, "step": step_of(folder), **results}
    path = run_dir / BEST
    write_whole(path, json.dumps(content, indent=1).encode() + b"\n")


def best_of(run_dir: Place) -> Place | None:
    """The folder that best.json names, if there is one."""
    try:
        folder = run_dir / FOLDER / json.loads((run_dir / BEST).read_bytes())["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if step_of(folder) is not None else None
