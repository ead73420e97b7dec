"""One fault, and whether it ended as it must."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks.faults.processes import Result, in_turn
from benchmarks.faults.run import Ended

REFUSED = "refuses"
CONTINUED = "continues"
FAILED = "FAILED"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Case:
    """A fault, done to a run folder in an empty folder by `run`, which then starts the run again."""

    group: str
    name: str
    run: Callable[[Path], Ended]
    expected: tuple[int, str] | None  # step and attempt to continue from; None: refuse
    where: str = ""  # file or folder that must be named
    reason: str = ""  # regular expression
    note: str = ""  # which one of many of that name
    why_not: str = ""  # this machine cannot run it


@dataclass(frozen=True)
class Row:
    """A case and its end."""

    group: str
    name: str
    ends: str  # CONTINUED, REFUSED, FAILED or NOT_RUN
    step: int | None
    text: str  # the reason given, or what went wrong


def run_all(cases: list[Case], folder: Path, at_once: int) -> Iterator[Row]:
    """Each case in a process and a folder of its own, `at_once` of them side by side."""
    folders = [folder / f"case{i}" for i in range(len(cases))]
    results = in_turn(map(partial, repeat(_run), cases, folders), at_once)
    for case, place, result in zip(cases, folders, results, strict=True):
        shutil.rmtree(place, ignore_errors=True)  # from outside of its mounts
        yield judge(case, result)


def judge(case: Case, result: Result) -> Row:
    """FAILED unless it ended as expected, with a text that names the place, the reason and, refused, the remedy."""
    if case.why_not:
        return Row(case.group, case.name, NOT_RUN, None, case.why_not)
    if result.value is None:
        return _failed(case, result.error or f"hung, or died of signal {result.signal}")
    ended = Ended(**result.value)
    refused = case.expected is None
    if refused != (ended.how == REFUSED) or (not refused and case.expected != (ended.step, ended.attempt)):
        return _failed(case, f"expected {case.expected or REFUSED}, got {ended}")
    if case.where not in ended.text or not re.search(case.reason, ended.text, re.DOTALL):
        return _failed(case, f"no /{case.reason}/ for '{case.where}' in: {ended.text}")
    if refused and not re.search(r"\n  fix:  \w", ended.text):
        return _failed(case, f"no remedy in: {ended.text}")
    line = next((line for line in ended.text.splitlines() if case.where in line), "")
    return Row(case.group, case.name, ended.how, ended.step, line.strip().removeprefix("- "))


def _run(case: Case, folder: Path) -> dict[str, Any] | None:
    if case.why_not:
        return None
    folder.mkdir()
    return asdict(case.run(folder))


def _failed(case: Case, text: str) -> Row:
    return Row(case.group, f"{case.name} {case.note}".strip(), FAILED, None, text)
