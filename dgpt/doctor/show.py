"""A report as tables, for people."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from dgpt.doctor.reading import Device, Reading
from dgpt.doctor.report import Report
from dgpt.doctor.rules import Problem
from dgpt.tables import size_text

MOST_NODES = 40  # rows; of more nodes those with problems are shown


def show(report: Report, console: Console | None = None) -> None:
    console = console or Console()
    console.print(_nodes(report), _devices(report))
    world = f"all-reduce over {report.world} ranks: "
    console.print(world + (f"{1000 * report.reduce_seconds:.1f} ms for 1 MiB" if report.reduce_seconds else "failed"))
    for problem in report.problems:
        console.print(_text(problem), style="red" if problem.fatal else "yellow", highlight=False, markup=False)
    verdict = (
        "fit to train" if not report.problems else "nothing can be trained" if report.fatal else "fit, with warnings"
    )
    console.print(f"{len(report.readings)} nodes examined in {report.seconds:.1f} s: {verdict}", highlight=False)


def _text(problem: Problem) -> str:
    return f"{'problem' if problem.fatal else 'warning'}: {problem}"


def _nodes(report: Report) -> Table:
    table = Table("node", "cores", "processes", "open files", "locked", "/dev/shm", "free in folder", "/tmp", "clock",
                  box=box.SIMPLE, title="nodes")  # fmt: skip
    first = report.readings[0].clock if report.readings else None
    for reading in _shown(report):
        off = "" if reading.clock is None or first is None else f"{reading.clock - first:+.2f} s"
        table.add_row(reading.node, str(reading.cores), str(reading.processes), _limit(reading.open_files),
                      size_text(reading.locked_memory) if reading.locked_memory >= 0 else "unlimited",
                      size_text(reading.shared_memory), size_text(reading.folder_free),
                      size_text(reading.temporary_free), off)  # fmt: skip
    return table


def _devices(report: Report) -> Table:
    table = Table("node", "device", "product", "TFLOP/s", "driver says", box=box.SIMPLE, title="devices")
    for reading in _shown(report):
        for device in reading.devices:
            table.add_row(
                reading.node, device.label, _product(device), f"{device.tflops:g}", device.trouble or "nothing"
            )
    return table


def _product(device: Device) -> str:
    if device.error:
        return device.error
    return "right" if device.checksum == device.expected else "WRONG"


def _shown(report: Report) -> Iterator[Reading]:
    bad = {node for problem in report.problems for node in problem.suspects}
    yield from (reading for number, reading in enumerate(report.readings) if number < MOST_NODES or reading.node in bad)


def _limit(value: int) -> str:
    return "unlimited" if value < 0 else f"{value:,}"
