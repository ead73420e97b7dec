"""What each action of `dgpt checkpoint` does with its options. Heavy imports happen in the action."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from dgpt import outcome
from dgpt.errors import UserError
from dgpt.storage import Place, RemotePath
from dgpt.tables import or_dash, print_table, size_text

if TYPE_CHECKING:
    from dgpt.checkpoint import Found
    from dgpt.checkpoint.diff import Compared, Difference, Distance
    from dgpt.checkpoint.report import Problem, Row

DIFFERENT = 1  # as diff(1): 0 equal, 1 different, 2 trouble
SHOWN = 10  # tensors of a diff


def list_(options: Namespace) -> int:
    from dgpt.checkpoint.files import FOLDER
    from dgpt.checkpoint.find import NO_NAME, renamed
    from dgpt.checkpoint.report import list_checkpoints

    if not options.run.is_dir():
        raise UserError(f"'{options.run}' is not a folder", rule="list shows what is in a run folder",
                        fix="give the run_dir of a run")  # fmt: skip
    rows = [_cells(row) for row in list_checkpoints(options.run)]
    if not rows and not any((options.run / name).exists() for name in ("config.toml", FOLDER)):
        raise UserError(f"'{options.run}' is no run folder", rule=f"a run folder has config.toml and {FOLDER}",
                        fix="give the run_dir of a run; `dgpt checkpoint show` looks at one checkpoint")  # fmt: skip
    if rows:
        print_table(("step", "tokens", "loss", "size", "age", "whole"), rows)
    else:
        print(f"no checkpoints in {options.run}")
    for name in renamed(options.run / FOLDER):
        print(f"not one of them: {name} is {NO_NAME}")
    return outcome.DONE


def show(options: Namespace) -> int:
    from dgpt.checkpoint import report
    from dgpt.generate import choose

    damaged_too = _is_checkpoint(options.path)
    print(report.show(options.path if damaged_too else choose(options.path).folder))
    return outcome.DONE


def verify(options: Namespace) -> int:
    """One checkpoint, even a damaged one; or all that a run folder holds."""
    from dgpt.checkpoint import open_checkpoint, report

    folders = [options.path] if _is_checkpoint(options.path) else report.all_checkpoints(options.path)
    folders = folders or [open_checkpoint(options.path).folder]  # which says what is missing
    damaged = False
    for folder, problems in report.inspect(folders, progress=sys.stderr.isatty()).items():
        problems = problems or _foreign_tokenizer(folder)
        damaged = damaged or bool(problems)
        lines = (f"{problem.summary}\n  fix: {problem.fix}" for problem in problems)
        print("\n".join(lines) or f"{folder}: whole, every hash matches")
    return outcome.MISTAKE if damaged else outcome.DONE


def diff(options: Namespace) -> int:
    from dgpt.checkpoint.diff import diff
    from dgpt.generate import choose

    a, b = choose(options.a), choose(options.b)
    difference = diff(a, b, progress=sys.stderr.isatty())
    print(f"a: {_identity(a)}\nb: {_identity(b)}")
    _print_difference(difference, None if options.all else SHOWN)
    return outcome.DONE if difference.equal else DIFFERENT


def prune(options: Namespace) -> int:
    from dgpt.checkpoint.files import FOLDER, clean, step_folders, step_of
    from dgpt.checkpoint.prune import doomed, prune
    from dgpt.checkpoint.read import problem_of
    from dgpt.lease import Lease

    if isinstance(options.run, RemotePath):
        raise UserError(f"'{options.run}' is a URL", rule="prune deletes in local folders only",
                        fix="give the store a rule of its own for old objects")  # fmt: skip
    root = options.run / FOLDER
    folders = step_folders(root)
    if not folders:
        raise UserError(f"'{options.run}' has no checkpoints", rule="prune deletes old checkpoints of a run folder",
                        fix="give the run_dir of a run")  # fmt: skip
    wanted = root, step_of(folders[0]) or 0, options.keep_last, options.keep_every
    sizes = {folder: sum(path.lstat().st_size for path in folder.glob("*")) for folder in folders}
    judge = _Judge()
    try:
        if options.dry_run:
            gone = doomed(*wanted, judge_kept=judge)
        else:
            with Lease.take(options.run):  # refuses the folder of a run that is going on
                clean(root)  # as whoever takes it: a writer that sleeps finds nothing to commit when it wakes
                gone = prune(*wanted, f"prune-{uuid4().hex}", judge_kept=judge)
    except OSError as error:
        raise UserError(f"a checkpoint of '{options.run}' could not be deleted: {error}",
                        rule="prune needs the right to write there",
                        fix="free it and prune again") from None  # fmt: skip
    for folder in reversed(folders):
        damage = None if folder in gone else judge.found[folder] if folder in judge.found else problem_of(folder)
        word = "delete" if folder in gone else "damaged" if damage else "keep"
        print(f"{word:7}  {folder.name}  {size_text(sizes[folder]):>10}  {damage or ''}".rstrip())
    freed = size_text(sum(sizes[folder] for folder in gone))
    print(f"{len(gone)} of {len(folders)} checkpoints, {freed}: " + ("would go" if options.dry_run else "deleted"))
    return outcome.DONE


def average(options: Namespace) -> int:
    if len(options.sources) < 2:
        raise UserError(f"average of one checkpoint: {options.sources[0]}", rule="a mean takes two or more",
                        fix="name more checkpoints, for example RUN/checkpoints/step_*")  # fmt: skip
    from dgpt.export import average

    manifest = average(options.sources, options.output, progress=sys.stderr.isatty())
    written = f"{size_text(manifest.bytes)}, with the settings of step {manifest.step}"
    print(f"{options.output}: mean weights of {len(options.sources)} checkpoints, {written}")
    return outcome.DONE


class _Judge:
    """What is wrong with a checkpoint, every byte of it read: what is to be kept must be good."""

    def __init__(self) -> None:
        self.found: dict[Path, str | None] = {}

    def __call__(self, folder: Path) -> str | None:
        from dgpt.checkpoint.report import damage_of

        self.found[folder] = damage_of(folder, progress=sys.stderr.isatty())
        return self.found[folder]


def _is_checkpoint(path: Place) -> bool:
    from dgpt.checkpoint.files import step_of
    from dgpt.checkpoint.format import MANIFEST

    return (path / MANIFEST).exists() or (step_of(path) is not None and path.is_dir())


def _foreign_tokenizer(folder: Place) -> "list[Problem]":
    """What is wrong with the tokenizer of an export; the manifest holds its hash."""
    from dgpt.checkpoint import open_checkpoint
    from dgpt.checkpoint.files import step_of
    from dgpt.checkpoint.report import Problem
    from dgpt.generate import own_tokenizer, tokenizer_of

    if step_of(folder) is None or own_tokenizer(folder):
        try:
            tokenizer_of(open_checkpoint(folder))
        except UserError as error:
            return [Problem(error.what, error.fix)]
    return []


def _cells(row: "Row") -> tuple[str, ...]:
    from dgpt.train.console import duration

    numbers = str(row.step), or_dash(row.tokens, ","), or_dash(row.loss, ".4f")
    size = "-" if row.bytes is None else size_text(row.bytes)
    age = duration(row.age_seconds) if row.age_seconds else "-"
    return *numbers, size, age, f"no: {row.problem}" if row.problem else "yes, by size"


def _identity(found: "Found") -> str:
    mesh, m = found.manifest.mesh, found.manifest
    topology = f"dp {mesh.dp_size} x tp {mesh.tp}, ZeRO {mesh.zero_stage}"
    return f"{found.folder}  step {m.step}, {m.meta.tokens:,} tokens; {topology}"


def _print_difference(difference: "Difference", shown: int | None) -> None:
    for state, entries, distance in difference.states():
        equal = sum(entry.distance.equal for entry in entries)
        print(f"{state}: {equal} of {len(entries)} tensors equal{_far(distance)}")
    for line in difference.unmatched:
        print(line)
    different = [entry for entry in difference.compared if not entry.distance.equal]
    entries = difference.compared if shown is None else different[:shown]
    if entries:
        columns = ("|a-b|/|b|", "max |a-b|", "state", "tensor", "dtype")
        print_table(columns, map(_entry, entries), right=2)
    if len(different) > len(entries):
        print(f"{len(different) - len(entries)} more differ: --all shows every tensor")
    print("equal, bit for bit" if difference.equal else "different")


def _far(distance: "Distance") -> str:
    return "" if distance.equal else f"; |a-b|/|b| = {distance.relative:.3g}, max |a-b| = {distance.largest:.3g}"


def _entry(entry: "Compared") -> tuple[str, ...]:
    distance = entry.distance
    numbers = ("equal", "") if distance.equal else (f"{distance.relative:.3g}", f"{distance.largest:.3g}")
    return *numbers, entry.state, entry.name, entry.dtypes
