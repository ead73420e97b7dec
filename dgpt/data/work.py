"""The parallel part of a preparation: which units are missing, and the processes that tokenise them."""

import json
import os
from collections.abc import Iterator

from rich.console import Console

from dgpt.data.files import write_json
from dgpt.data.meter import Meter
from dgpt.data.pool import WorkerPool
from dgpt.data.preparation import Preparation
from dgpt.data.sources import Unit, units
from dgpt.data.tokenise import Tokenise, UnitCounts, read_counts, unit_path
from dgpt.errors import UserError

MOST_PER_CORE = 8
UNITS_FILE = "units.json"  # written when all units are there; from then on they may go


def tokenise_units(job: Preparation, console: Console) -> list[list[UnitCounts]]:
    """Write the unit files that are not there yet; gives the counts of all, by source and in order."""
    finished = job.work / UNITS_FILE
    if not finished.exists():
        _tokenise_missing(job, console)
        paths = [sorted(job.work.glob(f"{source:05d}-*.unit")) for source in range(len(job.files))]
        write_json(finished, [[vars(read_counts(path)) for path in of_source] for of_source in paths])
    return [[UnitCounts(**unit) for unit in of_source] for of_source in json.loads(finished.read_bytes())]


def _tokenise_missing(job: Preparation, console: Console) -> None:
    data = job.config.data
    processes = worker_processes(data.num_workers)
    make_worker = Tokenise(job.work, data.sources, data.val_fraction)
    disk_bytes = job.disk_bytes if job.known_size else None
    with Meter(console, disk_bytes) as meter, WorkerPool(processes, make_worker) as pool:
        for counts, read_bytes in pool.map_unordered(_missing(job, meter)):
            meter.advance(counts.text_bytes, counts.train_tokens + counts.val_tokens, read_bytes)


def worker_processes(wanted: int) -> int:
    """data.num_workers, or one per core. Raises UserError for more than this machine can use."""
    cores = len(os.sched_getaffinity(0))
    if wanted > MOST_PER_CORE * cores:
        raise UserError(f"data.num_workers = {wanted} on {cores} cores",
                        rule=f"at most {MOST_PER_CORE} processes to a core, as each computes all the time",
                        fix="set it to 0 for one to a core")  # fmt: skip
    return wanted or cores


def _missing(job: Preparation, meter: Meter) -> Iterator[Unit]:
    done = {path.name for path in job.work.glob("*.unit")}
    for number, (source, files) in enumerate(zip(job.config.data.sources, job.files, strict=True)):
        first = skip_rows = 0
        while source.dataset and (path := unit_path(job.work, number, first)).name in done:
            skip_rows += read_counts(path).rows
            first += 1
        for unit in units(number, source, files, job.unit_bytes, first, skip_rows):
            if unit_path(job.work, number, unit.number).name in done:
                meter.advance(0, 0, unit.disk_bytes)
            else:
                yield unit
