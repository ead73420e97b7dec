"""What is wrong with the nodes of a job, from their readings. Pure functions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from dgpt.doctor.reading import Device, Reading

GIB = 2**30
LITTLE_SPACE = 1 * GIB
GPU_SHARED_MEMORY, CPU_SHARED_MEMORY = 1 * GIB, 64 * 2**20  # a container has 64 MiB by default
SPARE_FILES = 1024
LOCKED_MEMORY = 64 * 2**20
SKEW_SECONDS = 2.0  # dgpt.agent compares times of nodes to find who failed first
SLOW = 0.7  # of the median speed of all devices


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, and what to do. `suspects`: the nodes it comes from; empty where it is no node's own."""

    what: str
    fix: str
    suspects: tuple[str, ...] = ()
    fatal: bool = True  # nothing can be trained; else it costs speed, or will matter later
    passing: bool = False  # may be gone at the next start

    def __str__(self) -> str:
        return f"{self.what}\n  fix:  {self.fix}"


def judge(readings: Sequence[Reading]) -> list[Problem]:
    """Everything that the readings show. Whether a checkpoint fits is checked by `dgpt submit` and by each start."""
    rules = (_versions, _config, _shared, _devices, _number_of_devices, _limits, _clock, _speed, _space)
    return [problem for rule in rules for problem in rule(readings)]


def _odd_ones(readings: Sequence[Reading], value: Callable[[Reading], object]) -> dict[str, tuple[str, ...]]:
    """value -> nodes, if there are several values; {} if all are alike. Only a minority can be suspect."""
    groups: dict[str, tuple[str, ...]] = {}
    for reading in readings:
        groups[str(value(reading))] = (*groups.get(str(value(reading)), ()), reading.node)
    return groups if len(groups) > 1 else {}


def minority(groups: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The nodes outside the largest group, if that holds more than half of them."""
    largest = max(groups.values(), key=len, default=())
    total = sum(map(len, groups.values()))
    return tuple(sorted(node for group in groups.values() if group is not largest for node in group)
                 if 2 * len(largest) > total else ())  # fmt: skip


def _listed(groups: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value or 'none'} on {names(nodes)}" for value, nodes in groups.items())


def names(nodes: Sequence[str], most: int = 6) -> str:
    more = len(nodes) - most
    return ", ".join(nodes[:most]) + (f" and {more} more" if more > 0 else "")


def _versions(readings: Sequence[Reading]) -> Iterator[Problem]:
    known = dict.fromkeys(name for reading in readings for name in reading.versions)
    for name in known:
        if groups := _odd_ones(readings, lambda reading, name=name: reading.versions.get(name, "none")):  # type: ignore[misc]
            yield Problem(f"versions of {name} differ: {_listed(groups)}",
                          "use one environment on a file system that all nodes see, and drivers of one version",
                          minority(groups), fatal=name != "driver")  # fmt: skip


def _config(readings: Sequence[Reading]) -> Iterator[Problem]:
    if groups := _odd_ones(readings, lambda reading: reading.config):
        odd = minority(groups)
        yield Problem(f"the settings differ between nodes: {names(odd) or names([r.node for r in readings])} read "
                      "another run.toml", "keep run.toml on a file system that all nodes see", odd)  # fmt: skip


def _shared(readings: Sequence[Reading]) -> Iterator[Problem]:
    unwritable = {reading.node: reading.folder_error for reading in readings if reading.folder_error}
    if unwritable:
        everywhere = len(unwritable) == len(readings)
        yield Problem(
            f"'{readings[0].folder}' cannot be written on {names(list(unwritable))}: {next(iter(unwritable.values()))}",
            "set run_dir to a folder of yours" if everywhere else "tell the administrators: is it mounted there?",
            () if everywhere else tuple(unwritable),
        )
    blind = [reading.node for reading in readings if not reading.sees_token and reading.node not in unwritable]
    if blind:
        yield Problem(f"'{readings[0].folder}' is not shared: what {readings[0].node} wrote cannot be read on "
                      f"{names(blind)}", "set run_dir to a folder on a file system that all nodes see",
                      tuple(blind) if 2 * len(blind) < len(readings) else ())  # fmt: skip


def _of_devices(readings: Sequence[Reading]) -> Iterator[tuple[Reading, Device]]:
    return ((reading, device) for reading in readings for device in reading.devices)


def _devices(readings: Sequence[Reading]) -> Iterator[Problem]:
    tell = "tell the administrators; dgpt leaves the node out of the next start"
    for reading, device in _of_devices(readings):
        where = f"{device.label} of {reading.node}"
        if device.error:
            yield Problem(f"{where} cannot compute: {device.error}", tell, (reading.node,))
        elif device.checksum != device.expected:
            yield Problem(f"{where} computes wrong: the checksum of a product is {device.checksum}, not "
                          f"{device.expected}", tell, (reading.node,))  # fmt: skip
        if device.trouble:
            hopeless = "could not be remapped" in device.trouble
            yield Problem(f"{where}: {device.trouble}", tell if hopeless else "tell the administrators",
                          (reading.node,), fatal=hopeless)  # fmt: skip
    kinds = {device.index >= 0 for _, device in _of_devices(readings)}
    for gpu in kinds:  # a CPU that computes wrong blames its devices
        having = [
            reading for reading in readings if any((d.index >= 0) == gpu and not d.error for d in reading.devices)
        ]
        if groups := _odd_ones(having, lambda reading: {d.expected for d in reading.devices if not d.error}):
            yield Problem(
                f"the CPUs of nodes disagree about a sum of integers: {_listed(groups)}", tell, minority(groups)
            )


def _number_of_devices(readings: Sequence[Reading]) -> Iterator[Problem]:
    gpus = {reading.node: sum(device.index >= 0 for device in reading.devices) for reading in readings}
    short = {reading.node: gpus[reading.node] for reading in readings
             if any(gpus.values()) and gpus[reading.node] < max(reading.processes, 1)}  # fmt: skip
    for node, count in short.items():
        wanted = next(reading.processes for reading in readings if reading.node == node)
        yield Problem(f"{node} shows {count} GPUs for {wanted} processes",
                      "ask for --gpus-per-node; if it should have them, tell the administrators of the node",
                      (node,) if len(short) < len(readings) else ())  # fmt: skip


def _limits(readings: Sequence[Reading]) -> Iterator[Problem]:
    world = sum(max(reading.processes, 1) for reading in readings)
    yield from _below(readings, "open files (ulimit -n)", lambda r: r.open_files, world + SPARE_FILES,
                      "ulimit -n in your shell before submit, or LimitNOFILE of slurmd")  # fmt: skip
    on_network = [reading for reading in readings if reading.infiniband]
    yield from _below(on_network, "bytes of locked memory (ulimit -l)", lambda r: r.locked_memory, LOCKED_MEMORY,
                      "InfiniBand needs it: ask for LimitMEMLOCK=infinity of slurmd")  # fmt: skip
    gpus = any(device.index >= 0 for _, device in _of_devices(readings))
    wanted = GPU_SHARED_MEMORY if gpus else CPU_SHARED_MEMORY
    yield from _below(readings, "bytes in /dev/shm", lambda r: r.shared_memory, wanted,
                      "NCCL and workers use it: more --shm-size for the container")  # fmt: skip
    few = {r.node: f"{r.cores} for {r.processes}" for r in readings if 0 <= r.cores < r.processes}
    if few:
        yield Problem(f"fewer cores than processes on {names(list(few))}: {next(iter(few.values()))}",
                      "give --cpus-per-task: all processes of a node share them", fatal=False)  # fmt: skip


def _below(
    readings: Sequence[Reading], what: str, value: Callable[[Reading], int], least: int, fix: str
) -> Iterator[Problem]:
    low = {reading.node: value(reading) for reading in readings if 0 <= value(reading) < least}
    if low:
        yield Problem(f"{min(low.values()):,} {what} on {names(list(low))}, and {least:,} are wanted", fix, fatal=False)


def _clock(readings: Sequence[Reading]) -> Iterator[Problem]:
    times = {reading.node: reading.clock for reading in readings if reading.clock is not None}
    middle = median(times.values()) if times else 0.0
    off = {node: time - middle for node, time in times.items() if abs(time - middle) > SKEW_SECONDS}
    if len(times) == 2 and abs(max(times.values()) - min(times.values())) > SKEW_SECONDS:
        off = {node: time - readings[0].clock for node, time in times.items() if time != readings[0].clock}  # type: ignore[operator]
    for node, seconds in off.items():
        yield Problem(f"the clock of {node} is {seconds:+.1f} s off those of the others",
                      "tell the administrators (chronyd); until then the first failure may be named wrongly",
                      fatal=False)  # fmt: skip


def _speed(readings: Sequence[Reading]) -> Iterator[Problem]:
    fast = [device.tflops for _, device in _of_devices(readings) if device.index >= 0 and device.tflops]
    for reading, device in _of_devices(readings):
        if len(fast) > 2 and device.index >= 0 and 0 < device.tflops < SLOW * median(fast):
            yield Problem(f"{device.label} of {reading.node} is slow: {device.tflops:.0f} TFLOP/s, and "
                          f"{median(fast):.0f} is usual here", "all wait for it: --exclude the node",
                          (reading.node,), fatal=False)  # fmt: skip


def _space(readings: Sequence[Reading]) -> Iterator[Problem]:
    written = [reading for reading in readings if not reading.folder_error]
    yield from _below(written, f"bytes free in '{readings[0].folder}'", lambda r: r.folder_free, LITTLE_SPACE,
                      "free space, or set run_dir to a folder on a larger disk")  # fmt: skip
    yield from _below(readings, "bytes free in /tmp", lambda r: r.temporary_free, LITTLE_SPACE,
                      "tell the administrators, or set TMPDIR to a larger disk")  # fmt: skip
