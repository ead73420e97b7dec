"""`dgpt logs`: what the ranks of a start wrote, node by node or one rank alone, to its end or as it comes."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dgpt.errors import UserError

POLL_SECONDS = 0.5
_RANK = re.compile(rb"\[rank (\d+)\] ")


def newest_start(run_dir: Path) -> int:
    """Raises UserError if no start has left logs."""
    names = (path.name.removeprefix("restart_") for path in (run_dir / "logs").glob("restart_*"))
    starts = [int(name) for name in names if name.isdecimal()]
    if not starts:
        raise UserError(f"'{run_dir}' has no logs", rule="jobs of Slurm write RUN/logs/restart_<R>/<node>.log",
                        fix="give the run_dir of a run that was started by sbatch or `dgpt submit`")  # fmt: skip
    return max(starts)


def folder_of(run_dir: Path, start: int | None) -> Path:
    """Logs of a start, None: the newest. Raises UserError if it has none."""
    newest = newest_start(run_dir)
    folder = run_dir / "logs" / f"restart_{newest if start is None else start}"
    if not folder.is_dir():
        raise UserError(f"--restart = {start}: '{folder}' does not exist", rule=f"this run has starts 0 to {newest}",
                        fix="give one of them, or none for the newest")  # fmt: skip
    return folder


def lines(folder: Path, rank: int | None, offsets: dict[Path, int]) -> Iterator[tuple[str, bytes]]:
    """(node, line) of what was written since `offsets`, which it moves on; with a rank, that one's lines alone."""
    for path in sorted(folder.glob("*.log")):
        with path.open("rb") as file:
            file.seek(offsets.get(path, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    break  # not whole yet
                offsets[path] = offsets.get(path, 0) + len(line)
                found = _RANK.match(line)
                if rank is None or (found and int(found[1]) == rank):
                    yield path.stem, line


def show(run_dir: Path, start: int | None, rank: int | None, *, follow: bool, running: Callable[[], bool]) -> None:
    """Print the logs; with `follow` go on with those of later starts, until `running` says no."""
    folder, offsets = folder_of(run_dir, start), dict[Path, int]()
    while True:
        alive = not follow or running()
        for node, line in lines(folder, rank, offsets):
            sys.stdout.write(f"{node}: {line.decode(errors='replace')}")
        sys.stdout.flush()
        if not follow or not alive:
            return
        if start is None:
            folder = folder_of(run_dir, None)
        time.sleep(POLL_SECONDS)
