"""Damage to a checkpoint at rest, with an older whole checkpoint beside it and without."""

import shutil
from functools import partial
from pathlib import Path

from benchmarks.faults.attack import attacks, pickles
from benchmarks.faults.cases import Case
from benchmarks.faults.damage import NEWEST, OLDER, Damage, accidents, bit_flips, links
from benchmarks.faults.processes import Child
from benchmarks.faults.run import Ended, Shapes, save, start

ATTEMPT = "a0"
GROUPS = {True: "damage; an older checkpoint is whole", False: "damage; there is no other checkpoint"}


def damage_cases(folder: Path, shapes: Shapes, flips: int) -> list[Case]:
    """Each damage to step 2, with step 1 there and without; `flips` random bits among them."""
    before = folder / "before-damage"
    result = Child(partial(save, before, shapes, [1, 2], ATTEMPT)).result()
    assert not result.error, result.error
    flipped = bit_flips(before / "checkpoints" / NEWEST, flips)
    damages = [*accidents(), *links(), *pickles(), *attacks(), *flipped]
    return [_case(before, shapes, damage, older) for older in (True, False) for damage in damages]


def _case(before: Path, shapes: Shapes, damage: Damage, older: bool) -> Case:
    step = {"newest": 2, "older": 1 if older else None, "refuses": None}[damage.end]
    where = "" if damage.end == "newest" else f"{NEWEST}/{damage.where}".rstrip("/")
    run = partial(_run, before, shapes, damage, older)
    expected = (step, ATTEMPT) if step else None
    return Case(GROUPS[older], damage.name, run, expected, where, damage.reason, damage.note)


def _run(before: Path, shapes: Shapes, damage: Damage, older: bool, folder: Path) -> Ended:
    run_dir = folder / "run"
    shutil.copytree(before, run_dir)
    checkpoints, aside = run_dir / "checkpoints", folder / "older"
    shutil.copytree(checkpoints / OLDER, aside)
    damage.do(checkpoints / NEWEST, aside)
    if not older:
        shutil.rmtree(checkpoints / OLDER)
    there = sorted(run_dir.rglob("*"))
    ended = start(run_dir, shapes)
    if sorted(run_dir.rglob("*")) != there:
        raise AssertionError("the start changed the damaged run folder")
    if (folder / "exploded").exists():
        raise AssertionError("CODE OF THE PICKLE WAS RUN")
    return ended
