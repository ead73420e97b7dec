"""Training speed of dgpt and of its peers, in turn, in one run.

    python -m benchmarks.train                      the small model, fp32 and bf16, 1 and 2 processes
    python -m benchmarks.train --size vocab         the same with 50,304 tokens
    python -m benchmarks.train --size gpt2-124m     on a GPU

Every arm has warm processes, one thread each, that train a few steps a round, in turn: A B C, C B A, ... A number is
the median over the rounds, a ratio the median of the ratios within a round: what else the machine does meets both.
"""

import argparse
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.train_gate import Job, Round, Summary, serve
from benchmarks.train_spec import SIZES, Arm, Bar, Size, anchor_of, arms_of, bars_of

TOKENS = 2**20  # of the random data


@dataclass
class Result:
    """What an arm did: per round, the slowest rank's time, and the mean of its losses."""

    arm: Arm
    rates: list[float]  # tokens/s
    losses: list[float]
    peak_gib: float = 0.0
    mfu_per_token: float | None = None


class Runner:
    """The warm processes of one arm."""

    def __init__(self, arm: Arm, size: Size, rounds: int, steps: int, folder: Path, **environment: str) -> None:
        self.arm, self.folder = arm, folder
        context, port = multiprocessing.get_context("spawn"), _free_port()
        self.ranks: list[tuple[Any, Connection]] = []
        for rank in range(arm.processes):
            ours, theirs = context.Pipe()
            job = Job(arm, rank, port, size.name, rounds, steps, folder, environment)
            process = context.Process(target=serve, args=(job, theirs), daemon=True)
            process.start()
            theirs.close()
            self.ranks.append((process, ours))

    def round(self) -> list[Round]:
        return self._ask("go", Round)

    def end(self) -> list[Summary]:
        return self._ask("end", Summary)

    def kill(self) -> None:
        for process, _ in self.ranks:
            process.kill()
            process.join()

    def _ask(self, word: str, kind: type[Any]) -> list[Any]:
        for _, pipe in self.ranks:
            pipe.send(word)
        try:
            answers = [pipe.recv() for _, pipe in self.ranks]
        except EOFError:
            sys.exit(f"a process of {self.arm.name} was killed")
        failed = [answer for answer in answers if not isinstance(answer, kind)]
        if failed:
            sys.exit(f"{self.arm.name} failed:\n{failed[0]}")
        return answers


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    size = SIZES[options.size]
    for processes in options.nproc:
        for dtype in options.dtype or size.dtypes:
            with tempfile.TemporaryDirectory(prefix="dgpt-benchmark-") as folder:
                write_tokens(Path(folder) / "tokens", size.model["vocab_size"])
                arms = [arm for arm in arms_of(processes, dtype) if not options.only or arm.kind in options.only]
                wanted = not options.only or anchor_of().kind in options.only
                if "fp32" in size.dtypes and anchor_of() not in arms and wanted:
                    arms.append(anchor_of())
                results = compete(arms, size, options, Path(folder))
                print(report(results, bars_of(processes, dtype), processes, dtype), flush=True)


def compete(arms: list[Arm], size: Size, options: argparse.Namespace, folder: Path) -> dict[Arm, Result]:
    """Start all arms, let them run in turn, and end them; the first round only warms them up."""
    runners = [Runner(arm, size, options.rounds, options.steps, folder) for arm in arms]
    results = {arm: Result(arm, [], []) for arm in arms}
    try:
        for number in range(options.rounds + 1):
            for runner in runners if number % 2 else runners[::-1]:
                ranks = runner.round()
                slowest = max(rank.cpu_seconds if options.clock == "cpu" else rank.seconds for rank in ranks)
                result = results[runner.arm]
                result.losses.append(statistics.fmean(loss for rank in ranks for loss in rank.losses))
                if number:
                    result.rates.append(options.steps * size.batch * size.model["seq_len"] / slowest)
        for runner in runners:
            summaries, result = runner.end(), results[runner.arm]
            result.peak_gib = max(summary.peak_gib for summary in summaries)
            result.mfu_per_token = summaries[0].mfu_per_token
    finally:
        for runner in runners:
            runner.kill()
    return results


def report(results: dict[Arm, Result], bars: list[Bar], processes: int, dtype: str) -> str:
    """Two tables in Markdown: every arm, and the ratios."""
    lines = [f"\n{dtype}, {processes} processes, load average {os.getloadavg()[0]:.1f}\n",
             "| arm | tokens/s | fastest | peak GiB a rank | MFU | loss |", "|---|---|---|---|---|---|"]  # fmt: skip
    for arm, result in results.items():
        rate = statistics.median(result.rates)
        mfu = f"{rate * result.mfu_per_token / arm.processes:.1f}%" if result.mfu_per_token else ""
        lines.append(f"| {arm.name} | {rate:,.0f} | {max(result.rates):,.0f} | {result.peak_gib:.2f} | {mfu} | "
                     f"{result.losses[0]:.3f} to {result.losses[-1]:.3f} |")  # fmt: skip
        if not result.losses[-1] < result.losses[0]:
            lines.append(f"**{arm.name} does not learn: its numbers count for nothing**")
    lines += ["", "| ratio of tokens/s | median | bar |", "|---|---|---|"]
    for bar in bars:
        if bar.arm in results and bar.peer in results:
            ratio = statistics.median(
                a / b for a, b in zip(results[bar.arm].rates, results[bar.peer].rates, strict=True)
            )
            verdict = "" if bar.least is None else f"{bar.least} {'met' if ratio >= bar.least else 'MISSED'}"
            lines.append(f"| {bar.arm.name} / {bar.peer.name} | {ratio:.3f} | {verdict} |")
    return "\n".join(lines)


def write_tokens(path: Path, vocab_size: int) -> None:
    """Independent random tokens, of which some are likely (Zipf), so that the loss falls within a few steps."""
    p = 1 / np.arange(1, vocab_size + 1)
    np.random.default_rng(0).choice(vocab_size, TOKENS, p=p / p.sum()).astype(np.uint16).tofile(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--nproc", type=int, nargs="+", default=[1, 2], help="numbers of processes (default: 1 2)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), nargs="+", help="default: all that the size is for")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default: 7)")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps a round (default: 3)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="kinds of arms, e.g. dgpt bare")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu: count the slowest rank's own CPU time, on a machine that others use")  # fmt: skip
    options = parser.parse_args(arguments)
    print(f"size {options.size}, {options.rounds} rounds of {options.steps} steps, {options.clock} time, "
          f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")  # fmt: skip
    return options


if __name__ == "__main__":
    main()
