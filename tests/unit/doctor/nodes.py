"""`python nodes.py FOLDER`: examinations of four nodes, each a process of this machine, with faults that they have.

Prints a JSON object: scenario -> report. One process for all of them, as the import of torch is what takes long.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from dgpt.doctor import examine as examination
from dgpt.doctor.case import Case
from dgpt.doctor.devices import examine as compute
from dgpt.doctor.meeting import Meeting, Rank, all_reduce
from dgpt.doctor.reading import Device
from dgpt.doctor.runtime import Place

NODES = ("n0", "n1", "n2", "n3")
Fault = Callable[[], None]


def wrong_product() -> None:
    def look(index: int) -> Device:
        found = compute(index)
        return Device(index, found.name, found.checksum + 1, found.expected)

    examination.devices.examine = look


def stuck_device() -> None:
    examination.DEVICE_SECONDS = 2.0

    def look(index: int) -> Device:
        time.sleep(100)
        return Device(index, "stuck")

    examination.devices.examine = look


def no_network() -> None:
    def fail(rank: Rank) -> float:
        raise RuntimeError("connection refused")

    examination.all_reduce = fail


def dead_link() -> None:
    """From n1 to n2, and in what needs all links."""

    def fail(rank: Rank) -> float:
        if rank.name in ("all", "pair 1 2"):
            raise RuntimeError("connection refused")
        return all_reduce(rank)

    examination.all_reduce = fail


def other_folder() -> None:
    examination._sees = lambda folder, token: False


def dies() -> None:
    os._exit(1)


SCENARIOS: dict[str, dict[int, Fault]] = {
    "healthy": {},
    "wrong product": {1: wrong_product},
    "stuck device": {3: stuck_device},
    "no network": {2: no_network},
    "dead link": {1: dead_link},
    "not shared": {3: other_folder},
    "silent": {1: dies},
}
NETWORK_FAULTS = ("no network", "dead link")


def node(name: str, index: int, port: int, folder: Path, answer: Any) -> None:
    """The first one, on any free port, sends that port and then the report."""
    if name in NETWORK_FAULTS:
        examination.REDUCE_SECONDS, examination.PAIR_SECONDS = 6.0, 4.0
    if index in SCENARIOS[name]:
        SCENARIOS[name][index]()
    place = Place(NODES[index], index, len(NODES), "127.0.0.1", port, 1, NODES)
    with suppress(OSError) if index else nullcontext():
        met = Meeting(place, arrive_seconds=10.0 if name == "silent" else 60.0)
        if index == 0:
            answer.send(met.place.port)
        report = examination.examine(place, Case(folder), examination.devices.examine, lambda: "", met)
        if report:
            answer.send(report.to_json())


def scenario(folder: Path, name: str) -> Any:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    first = context.Process(target=node, args=(name, 0, 0, folder, theirs))
    first.start()
    theirs.close()  # a first node that dies is seen at once
    port = ours.recv()
    started = [context.Process(target=node, args=(name, index, port, folder, None)) for index in range(1, len(NODES))]
    for process in started:
        process.start()
    report = ours.recv() if ours.poll(60) else None
    for process in [first, *started]:
        process.join(20)
        process.kill()
    return report


if __name__ == "__main__":
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        found = pool.map(partial(scenario, Path(sys.argv[1])), SCENARIOS)
        print(json.dumps(dict(zip(SCENARIOS, found, strict=True))))
