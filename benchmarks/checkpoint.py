"""Speed and memory of checkpoints, beside the disk, the hash and torch.distributed.checkpoint (DCP), in one run.

    python -m benchmarks.checkpoint                     1 GB of state: weights and moments of a GPT-2, ZeRO 1, 2 ranks
    python -m benchmarks.checkpoint --folder /scratch   on another disk

Warm processes, one thread each, take turns: A B C, C B A, ... A number is the median over the rounds, a ratio the
median of the ratios within a round. plain_write and plain_read are sequential writes and reads of as many bytes by as
many processes, with sha256, and with fsync. Cold: the files were dropped from the page cache before (posix_fadvise);
warm: they were read before. A save ends when the checkpoint is there under its name. A stall stands beside one memory
copy of the rank's state, just before or just after dgpt's save, in turn. DCP has its defaults (it syncs its files,
hashes nothing, unpickles its metadata) and keeps its host buffers from save to save, as dgpt does.
Memory comes from fresh processes, one for each operation: the peak above what the rank held before, its state included.
"""

import argparse
import multiprocessing
import os
import platform
import shutil
import socket
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoint_rank import CHUNK_BYTES, Done, Job, serve
from benchmarks.checkpoint_spec import ALONE, Arm, Bar, arms_of, bars_of
from benchmarks.checkpoint_state import Topology, config_of, shapes_of

LENT = 1  # the step of the checkpoint that is read


class Runner:
    """The processes of one topology, and the folder in which they save."""

    def __init__(self, topology: Topology, gb: float, folder: Path, *, lean: bool = False) -> None:
        self.topology, self.folder = topology, folder
        context, port = multiprocessing.get_context("spawn"), _free_port()
        self.ranks: list[tuple[Any, Connection]] = []
        for rank in range(topology.ranks):
            ours, theirs = context.Pipe()
            job = Job(topology, rank, port, gb, folder, lean)
            process = context.Process(target=serve, args=(job, theirs), daemon=True)
            process.start()
            theirs.close()
            self.ranks.append((process, ours))

    def do(self, operation: str, argument: object, *, copies: bool = False, check: bool = False) -> list[Done]:
        for _, pipe in self.ranks:
            pipe.send((operation, argument, copies, operation.endswith("load"), check))
        try:
            answers = [pipe.recv() for _, pipe in self.ranks]
        except EOFError:
            sys.exit(f"a process of {self.topology} was killed")
        failed = [answer for answer in answers if not isinstance(answer, Done)]
        if failed:
            sys.exit(f"{operation} of {self.topology} failed:\n{failed[0]}")
        return answers

    def end(self) -> None:
        for process, _ in self.ranks:
            process.kill()
            process.join()


class Bench:
    """Runs one arm after another in a folder of its own."""

    def __init__(self, gb: float, folder: Path) -> None:
        self.gb, self.folder, self.step = gb, folder, LENT
        self.runners: dict[Topology, Runner] = {}

    def start(self, topologies: Sequence[Topology]) -> None:
        """Start the processes; each topology leaves what the others will read."""
        for topology in topologies:
            self.runners[topology] = Runner(topology, self.gb, self.folder)
        for topology, runner in self.runners.items():
            runner.do("save", LENT)
            runner.do("dcp_save", self._lent(topology, "dcp_load"))

    def run(self, arm: Arm, *, check: bool = False) -> list[Done]:
        runner = self.runners[arm.ranks]
        if arm.source is None:
            return self._save(runner, arm.operation)
        source = self._lent(arm.source, arm.operation)
        for path in (path for path in source.rglob("*") if path.is_file()):
            (_drop if arm.cold else _read)(path)
        return runner.do(arm.operation, source, check=check and arm.operation != "plain_read")

    def peak(self, operation: str, topology: Topology, source: Topology | None = None) -> float:
        """Peak memory of the worst rank as a multiple of its state, in fresh processes."""
        self.step += 1
        folder = self.folder / "fresh"
        folder.mkdir()
        runner = Runner(topology, self.gb, folder, lean=True)
        argument = self.step if operation == "save" else self._lent(source, operation) if source else folder / "dcp"
        try:
            return max(done.peak_bytes / done.state_bytes for done in runner.do(operation, argument))
        finally:
            runner.end()
            shutil.rmtree(folder)

    def end(self) -> None:
        for runner in self.runners.values():
            runner.end()

    def _save(self, runner: Runner, operation: str) -> list[Done]:
        self.step += 1
        folder = self.folder / "written"
        folder.mkdir()
        os.sync()  # what was deleted before is no business of this arm
        ours = operation == "save"
        done = runner.do(operation, self.step if ours else folder, copies=ours)
        for made in (folder, *self.folder.glob(f"*/checkpoints/step_*{self.step}")):
            shutil.rmtree(made)
        return done

    def _lent(self, topology: Topology, operation: str) -> Path:
        return self.folder / f"{topology}{'-dcp' if operation == 'dcp_load' else ''}"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="dgpt-benchmark-", dir=options.folder) as folder:
        bench = Bench(options.gb, Path(folder))
        try:
            arms = arms_of(options.ranks)
            bench.start(list(dict.fromkeys(arm.ranks for arm in arms)))
            rounds = []
            for number in range(options.rounds + 1):  # the first warms up and checks what was loaded
                order = arms if number % 2 else arms[::-1]
                rounds.append({arm: bench.run(arm, check=number == 0) for arm in order})
            print("\n".join(report(rounds[1:], list(bars_of(options.ranks)))), flush=True)
        finally:
            bench.end()
        print("\n".join(memory(bench, Topology(options.ranks))))


def report(rounds: list[dict[Arm, list[Done]]], bars: list[Bar]) -> Iterator[str]:
    """A table in Markdown: what is compared, in median seconds, and the median and range of its ratios."""
    yield f"load average {os.getloadavg()[0]:.1f}\n"
    yield "| time of | s | over time of | s | cache | ratio | range | bar |\n|---|---|---|---|---|---|---|---|"
    for bar in bars:
        times = [_times(bar, done) for done in rounds]
        over, under = (statistics.median(column) for column in zip(*times, strict=True))
        ratios = sorted(a / b for a, b in times)
        ratio, span = statistics.median(ratios), f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        name, peer = (bar.over, bar.under) if bar.under else (f"stall of {bar.over}", "one memory copy")
        yield (f"| {name} | {over:.3f} | {peer} | {under:.3f} | {_cache(bar.over)} | {ratio:.2f} | {span} | "
               f"{bar.verdict(ratio)} |")  # fmt: skip
    for arm in (arm for arm in rounds[0] if arm.operation == "save"):
        after = statistics.median(max(rank.after for rank in done[arm]) for done in rounds)
        yield f"\nafter the commit of {arm} its files are read back, in {after:.3f} s"


def memory(bench: Bench, many: Topology) -> Iterator[str]:
    yield "\n| peak memory of a rank beyond its state | x its state |\n|---|---|"
    cut = Topology(1, many.ranks)
    for operation, reader, source in (
        ("save", many, None), ("dcp_save", many, None), ("dcp_async_save", many, None), ("load", many, many),
        ("dcp_load", many, many), ("load", ALONE, many), ("load", many, ALONE), ("load", many, cut),
    ):  # fmt: skip
        yield f"| {Arm(operation, reader, source)} | {bench.peak(operation, reader, source):.2f} |"


def _times(bar: Bar, done: dict[Arm, list[Done]]) -> tuple[float, float]:
    """What the bar compares, in seconds of the slowest rank."""
    if bar.under is None:
        copies = done[Arm("save", bar.over.ranks)]
        return max(rank.stall for rank in done[bar.over]), max(rank.copy for rank in copies)
    return max(rank.seconds for rank in done[bar.over]), max(rank.seconds for rank in done[bar.under])


def _cache(arm: Arm) -> str:
    return {None: "", True: "cold", False: "warm"}[arm.cold]


def _drop(path: Path) -> None:
    """Out of the page cache, if it has been written to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(CHUNK_BYTES):
            pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0, help="state of the whole model, 10^9 bytes (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument("--ranks", type=int, default=2, help="processes, beside one alone (default: 2)")
    parser.add_argument("--folder", help="where to write (default: the folder for temporary files)")
    options = parser.parse_args(arguments)
    shapes = shapes_of(config_of(options.gb))
    gigabytes = sum(torch.Size(shape).numel() for shape in shapes.values()) * 12 / 1e9
    print(f"{gigabytes:.2f} GB in {len(shapes)} parameters, {options.rounds} rounds, {os.cpu_count()} cores of "
          f"{platform.machine()}, torch {torch.__version__}")  # fmt: skip
    return options


if __name__ == "__main__":
    main()
