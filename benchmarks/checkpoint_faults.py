"""How each fault of a checkpoint ends: kill -9, full and bad disks, damaged and hostile files.

    python -m benchmarks.checkpoint_faults [--small] [--json FILE]

Each case is a run of two ranks in processes of its own, whose state is known bit for bit. It must end in one of two
ways: the next start continues from the checkpoint that is expected, every fragment of it compared with what was saved,
or it refuses with an error that names file, reason and remedy. Anything else is a failure of the matrix: other data,
another exception, a process that hangs, leftovers, code that was run. Cases that need a mount are not run where that
is not permitted; the table says so. Exit code 1 if a case failed.
"""

import argparse
import gc
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import rich.progress  # noqa: F401  # here, once, and not in each forked process: `verify` needs it
import torch

from benchmarks.faults.at_rest import damage_cases
from benchmarks.faults.cases import FAILED, Case, Row, run_all
from benchmarks.faults.disk import prepare
from benchmarks.faults.kill import SCENARIOS, kill_cases
from benchmarks.faults.other_bytes import other_bytes_cases
from benchmarks.faults.run import Shapes
from benchmarks.faults.space import space_cases


@dataclass(frozen=True)
class Size:
    """How much of the matrix is run."""

    rows: int  # of the two large parameters: a shard has 120 bytes for each, and some more
    scenarios: tuple[str, ...]
    every: bool  # kill before each operation, not only where much can go wrong
    flips: int
    stall_seconds: float
    at_once: int


FULL = Size(100_000, tuple(SCENARIOS), every=True, flips=1000, stall_seconds=3.0, at_once=8)  # 12 MB: 2 chunks of 8 MiB
SMALL = Size(24, tuple(SCENARIOS)[-1:], every=False, flips=60, stall_seconds=4.0, at_once=16)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint_faults")
    parser.add_argument("--small", action="store_true", help="the part that `make test` runs")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    begin, size = time.perf_counter(), SMALL if options.small else FULL
    torch.set_num_threads(1)
    gc.freeze()  # what is there already stays shared with the forked processes
    with tempfile.TemporaryDirectory(prefix="dgpt-faults-") as name:
        rows = list(_watched(_cases(Path(name), size), Path(name), size.at_once))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows]))
    print("\n".join([*table(rows), "", *counts(rows), "", f"{time.perf_counter() - begin:.0f} s"]))
    sys.exit(any(row.ends == FAILED for row in rows))


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Equal ends of faults of one name together, with the reason that the first of them was given."""
    reasons: dict[tuple[str, str, str], str] = {}
    times: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        key = row.group, row.name, row.ends + (f" from step {row.step}" if row.step is not None else "")
        reasons.setdefault(key, _short(row.text))
        times[key] += 1
    group = None
    for key, text in reasons.items():
        if key[0] != group:
            group = key[0]
            yield f"\n{group}\n\n| fault | times | end | reason given |\n|---|---|---|---|"
        yield f"| {key[1]} | {times[key]} | {key[2]} | {text} |"


def counts(rows: Iterable[Row]) -> Iterator[str]:
    """How many cases of each group ended in which way."""
    yield "| faults | end | cases |\n|---|---|---|"
    for (group, ends), count in Counter((row.group, row.ends) for row in rows).items():
        yield f"| {group} | {ends} | {count} |"


def _cases(folder: Path, size: Size) -> list[Case]:
    kills = [case for name in size.scenarios
             for case in kill_cases(folder, Shapes(size.rows), name, size.stall_seconds, every=size.every)]  # fmt: skip
    disk = prepare(folder, size.stall_seconds)
    return [*kills, *space_cases(disk), *other_bytes_cases(disk), *damage_cases(folder, Shapes(24), size.flips)]


def _watched(cases: list[Case], folder: Path, at_once: int) -> Iterator[Row]:
    for i, row in enumerate(run_all(cases, folder, at_once), 1):
        if row.ends == FAILED or i % 100 == 0:
            print(f"{i} of {len(cases)}" + f": {row.group}, {row.name}: {row.text}" * (row.ends == FAILED),
                  file=sys.stderr, flush=True)  # fmt: skip
        yield row


def _short(text: str) -> str:
    """Without the folders of this run, and no more of a hash than one compares by eye."""
    text = re.sub(r"\S*/case\d+/run/(checkpoints/)?", "", " ".join(text.split()))
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1…", text).replace("|", "\\|")


if __name__ == "__main__":
    main()
