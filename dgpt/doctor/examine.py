"""The examination of all nodes, as each of them runs it; the first one gets the report."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import torch

from dgpt.doctor import devices
from dgpt.doctor.case import Case
from dgpt.doctor.meeting import (
    PAIR_SECONDS,
    REDUCE_SECONDS,
    Meeting,
    Rank,
    all_reduce,
    guilty,
    in_processes,
    pairings,
    silent,
)
from dgpt.doctor.reading import Device, Reading, read
from dgpt.doctor.report import Report
from dgpt.doctor.rules import Problem, judge, names
from dgpt.doctor.runtime import Place, visible

DEVICE_SECONDS = 45.0
SHARE_SECONDS = 10.0
EVERYONE = "an all-reduce over {world} ranks failed: {error}"
NETWORK = "tell the administrators: cables, switch, firewall; NCCL_DEBUG=INFO shows which network is used"

Examine = Callable[[int], Device]


def examine(
    place: Place,
    case: Case,
    look: Examine = devices.examine,
    report: Callable[[], str] = devices.driver_report,
    meeting: Meeting | None = None,
) -> Report | None:
    """On every node of `place`; the report on the first, None on the others. Raises OSError if it is not reached.

    look: examines a device; report: what the driver says. Tests give others.
    """
    begin, meeting = time.monotonic(), meeting or Meeting(place)
    place = meeting.place
    own = _own_reading(place, case, look, report())
    meeting.tell("reading", own.to_json())
    readings: dict[int, Reading] = {}
    if place.is_first:
        arrived = meeting.hear("reading", range(place.nodes), meeting.arrive_seconds)
        readings = {index: Reading.of(values) for index, values in arrived.items()}
    token = meeting.agree("token", partial(_leave_token, case.folder), meeting.arrive_seconds + DEVICE_SECONDS)
    meeting.tell("shared", {"clock": time.time(), "sees_token": _sees(case.folder, token)})
    if place.is_first:
        heard = meeting.hear("shared", readings, SHARE_SECONDS)
        readings = {index: replace(readings[index], **heard[index]) for index in readings if index in heard}
        _remove_token(case.folder, token)
    failed, seconds, world = _network(place, meeting, readings, own)
    meeting.leave(readings)
    if not place.is_first:
        return None
    missing = silent(place, readings, place.names, meeting.arrive_seconds)
    problems = [*([missing] if missing else []), *judge([*readings.values()]), *failed]
    return Report(tuple(readings.values()), tuple(problems), world, round(time.monotonic() - begin, 1), seconds)


def _own_reading(place: Place, case: Case, look: Examine, report: str) -> Reading:
    (count, _), troubles = in_processes(_count_gpus, [0], DEVICE_SECONDS)[0], devices.troubles(report)
    indices = list(range(count or 0)) or [-1]
    found = in_processes(lambda index: asdict(look(index)), indices, DEVICE_SECONDS)
    answers = zip(indices, found, strict=True)
    known = (Device(**device) if device else Device(index, "?", error=error) for index, (device, error) in answers)
    numbers = visible(len(indices))
    seen = [replace(device, trouble=troubles.get(numbers[device.index], "")) if device.index >= 0 else device
            for device in known]  # fmt: skip
    processes = place.processes or max(count or 0, 1)
    return read(place.node, case.folder, case.config, processes, tuple(seen), devices.driver_version(report))


def _count_gpus(_: object) -> int:
    return torch.cuda.device_count()


def _leave_token(folder: Path) -> str:
    token = f".doctor-{uuid4().hex}"
    with suppress(OSError):
        (folder / token).write_text(token, encoding="ascii")
    return token


def _sees(folder: Path, token: str) -> bool:
    """A file system may show a file a moment late."""
    for _ in range(10):
        with suppress(OSError):
            if (folder / token).read_text(encoding="ascii") == token:
                return True
        time.sleep(0.1)
    return False


def _remove_token(folder: Path, token: str) -> None:
    with suppress(OSError):
        (folder / token).unlink()


def _network(
    place: Place, meeting: Meeting, readings: Mapping[int, Reading], own: Reading
) -> tuple[list[Problem], float, int]:
    """(problems, seconds, ranks) of an all-reduce over all ranks, and between pairs of nodes where it fails."""
    plan = meeting.agree("plan", lambda: _plan(readings), meeting.arrive_seconds + DEVICE_SECONDS)
    mine, before, world = _mine(place, plan)
    gpus = any(device.index >= 0 for device in own.devices)
    ranks = [Rank(place, local if gpus else -1, before + local, world, "all", REDUCE_SECONDS) for local in range(mine)]
    done = in_processes(all_reduce, ranks, REDUCE_SECONDS + 5)
    error = next((error for _, error in done if error), "")
    meeting.tell("reduced", [error, max((seconds for seconds, _ in done if seconds), default=0.0)])
    outcome = meeting.hear("reduced", readings, REDUCE_SECONDS + 15) if place.is_first else {}
    errors = sorted((said[0] for said in outcome.values() if said[0]), key=_is_wait)
    if not meeting.agree("pairs", lambda: bool(errors), REDUCE_SECONDS + 30):
        return [], max((said[1] for said in outcome.values()), default=0.0), world
    bad_pairs = _pairs(place, meeting, [int(index) for index, count in plan if count], gpus=gpus)
    return _blame(place, bad_pairs, errors, world) if place.is_first else [], 0.0, world


def _is_wait(error: str) -> bool:
    """The others wait for the one that says what happened."""
    return "timeout" in error


def _plan(readings: Mapping[int, Reading]) -> list[tuple[int, int]]:
    """(node, ranks) of the all-reduce: a process for each device that computes, of nodes that can be trained on."""
    gpus = any(device.index >= 0 for reading in readings.values() for device in reading.devices)
    return [(index, sum(device.index >= 0 for device in reading.devices) if gpus else 1)
            for index, reading in readings.items() if not any(device.error for device in reading.devices)]  # fmt: skip


def _mine(place: Place, plan: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    """(own ranks, ranks of the nodes before, all ranks)."""
    before = sum(count for index, count in plan if index < place.index)
    own = sum(count for index, count in plan if index == place.index)
    return own, before, sum(count for _, count in plan)


def _pairs(place: Place, meeting: Meeting, present: Sequence[int], *, gpus: bool) -> list[tuple[int, int]]:
    """The pairs of nodes, one rank of each, whose all-reduce fails; on the first node."""
    failed: list[tuple[int, int]] = []
    for number, pairs in enumerate(pairings(present)):
        for a, b in pairs:
            if place.index in (a, b):
                rank = Rank(place, 0 if gpus else -1, int(place.index == b), 2, f"pair {a} {b}", PAIR_SECONDS)
                meeting.tell(f"pair {a} {b}", in_processes(all_reduce, [rank], PAIR_SECONDS + 2)[0][1])
        if place.is_first:
            failed += _failed(meeting, pairs)
        meeting.agree(f"round {number}", lambda: True, 4 * PAIR_SECONDS)
    return failed


def _failed(meeting: Meeting, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of one round: those of which a node tells an error, or nothing."""
    deadline, failed = time.monotonic() + PAIR_SECONDS + 4, []
    for a, b in pairs:
        heard = meeting.hear(f"pair {a} {b}", (a, b), deadline - time.monotonic())
        if len(heard) < 2 or any(heard.values()):
            failed.append((a, b))
    return failed


def _blame(place: Place, failed: Sequence[tuple[int, int]], errors: Sequence[str], world: int) -> list[Problem]:
    text = EVERYONE.format(world=world, error=errors[0])
    nodes, links = guilty(failed)
    bad = [place.names[index] for index in nodes]
    found = [Problem(f"{text}; with {names(bad)} it fails in pairs of nodes too", NETWORK, tuple(bad))] if bad else []
    for a, b in links:
        both = (place.names[a], place.names[b])
        found.append(Problem(f"{text}; {both[0]} and {both[1]} do not reach each other", NETWORK, both))
    if place.nodes == 1:
        return [Problem(text, "GPUs of one node do not reach each other: `nvidia-smi topo -m`", place.names)]
    return found or [Problem(f"{text}; every pair of nodes works", NETWORK, passing=True)]
