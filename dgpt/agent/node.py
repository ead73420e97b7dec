"""Torchrun's main for one node, with signals that wait for a save and exit codes that say why.

Plain torchrun answers a signal by killing its workers after 30 seconds (torch 2.11), and ends with 1 and a table
whatever their exit codes were.
"""

import gc
import logging
import os
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from unittest.mock import patch

import psutil  # type: ignore[import-untyped]
import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler
from torch.distributed.launcher.api import elastic_launch

from dgpt import outcome, runtime
from dgpt.agent.forked import PASSED_ON, forking, preload
from dgpt.outcome import Verdict
from dgpt.watch import remains
from dgpt.watch.agent import Watch
from dgpt.watch.runtime import mark_as_agent

PATIENCE = 3  # interrupts (Ctrl-C) until the agent itself ends
SHOWN_STACKS = 2


class Relay:
    """Passes signals on to the workers, which save and end; before there are any, or on the third Ctrl-C, it ends.

    After the end of the last ones it goes on: srun sends SIGTERM as soon as another node has ended, and this one has
    yet to say how its workers did.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.restarts = False  # whether torchrun starts workers again
        self.workers: list[SubprocessHandler] = []  # that it has started
        for number in PASSED_ON:
            signal.signal(number, self._pass_on)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it is never told how a worker ended

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        workers = psutil.Process().children()
        may_start = self.restarts or not self.workers
        if (may_start and not workers) or self.received.count(signal.SIGINT) >= PATIENCE:
            raise SystemExit(128 + number)
        for worker in workers:
            os.kill(worker.pid, number)  # torchrun waits for workers in this thread, so the pid is still the worker's


def main(arguments: Sequence[str]) -> int:
    """Run the workers of this node to their end; the exit code that they agree on. Leaves nothing of them behind."""
    relay, began = Relay(), time.time()
    runtime.prepare_agent()
    try:
        return _end(_run(arguments, relay))
    finally:
        remains.end_children()
        remains.remove_shared_memory(began)


def _run(arguments: Sequence[str], relay: Relay) -> Verdict:
    for quiet in ("elastic.multiprocessing.api", "elastic.agent.server.api", "run"):
        logging.getLogger(f"torch.distributed.{quiet}").setLevel(logging.CRITICAL)  # conclude says it better
    command = torchrun.parse_args(list(arguments))  # type: ignore[no-untyped-call]
    if command.module and command.training_script == "dgpt.cli" and command.training_script_args:
        preload(command.training_script_args[0])
    gc.enable()  # __main__ has disabled it for the imports
    with tempfile.TemporaryDirectory(prefix="dgpt-agent-") as folder:
        heartbeats, logs = Path(folder) / "heartbeats", Path(folder) / "logs"
        mark_as_agent(heartbeats)
        failures: Mapping[int, ProcessFailure] = {}
        with Watch(heartbeats, runtime.node(), _tell_hang) as watch:
            try:
                command.log_dir = str(logs)
                relay.restarts = command.max_restarts > 0
                launch(command, relay.workers)
            except ChildFailedError as error:
                failures = error.failures
            except RendezvousError as error:
                text = f"dgpt: {runtime.node()}: the nodes did not find each other: {error} ({error.__cause__})"
                return Verdict(runtime.node(), outcome.FAILED, text, time.time(), final=False)
        if watch.hang and failures:
            return hung(watch)
        return judge(failures, outcome.read_reports(logs), relay.received)


def launch(command: Namespace, workers: list[SubprocessHandler]) -> None:
    """torchrun.run, which adds to `workers`, but that the agent asks less.

    No GPU: torch 2.13 would, for the NUMA nodes, and so spoil the fork. And the first node no more than it has to.
    """
    with patch.object(torch.cuda, "is_available", lambda: False):
        config, entrypoint, given = torchrun.config_from_args(command)
    with forking(workers), nullcontext() if command.max_restarts else _meeting_once():
        elastic_launch(config, entrypoint)(*given)


@contextmanager
def _meeting_once() -> Iterator[None]:
    """Without restarts the nodes meet once. torchrun asks the first one ten times a second whether more wait to join,
    and tells it in the end that none may: when it has gone, or cannot be reached, the answer is an error, or minutes of
    silence, in place of how the workers here ended."""
    with patch.multiple(DynamicRendezvousHandler, num_nodes_waiting=lambda self: 0, shutdown=lambda self: True):
        yield


def _end(verdict: Verdict) -> int:
    """Say how it ended, to people and to the batch script of a job. Returns the exit code.

    To a batch script that reads verdicts, nodes that stopped after a save end with 0, like their workers: srun would
    end the others at the first node that ends with another code.
    """
    with suppress(OSError):  # the disk of the log is full: the batch script may hear of it all the same
        if verdict.text:
            print(verdict.text, file=sys.stderr, flush=True)
    if not _tell(verdict):
        return verdict.exit_code
    return outcome.DONE if verdict.exit_code == outcome.STOPPED else verdict.exit_code


def _tell(verdict: Verdict) -> bool:
    """Write it for the batch script of a job, if there is one. A disk that is full changes nothing of how it ended."""
    path = runtime.verdict_file()
    if path is not None:
        with suppress(OSError):
            verdict.write(path)
    return path is not None


def _tell_hang(watch: Watch) -> None:
    """At once: srun ends this agent as soon as that of another node has ended."""
    _tell(hung(watch))


def hung(watch: Watch) -> Verdict:
    """Alike from all agents, but that the one of the missing ranks has their stacks, and says it first."""
    assert watch.hang is not None
    own = [watch.own_stacks[rank] for rank in watch.hang.ranks if rank in watch.own_stacks]
    text = "\n".join((*own[:SHOWN_STACKS], watch.hang.text))
    return Verdict(watch.hang.node, outcome.FAILED, text, watch.since + 0.01 * (not own), final=False)


def judge(failures: Mapping[int, ProcessFailure], reports: Mapping[int, outcome.Report], signals: list[int]) -> Verdict:
    """What the user needs to know of the end of this node's workers, and the exit code for it."""
    node, now = runtime.node(), time.time()
    mistakes = [report for _, report in sorted(reports.items()) if report.exit_code == outcome.MISTAKE]
    if mistakes:
        message = mistakes[0].message
        first_node = 0 in failures  # it prints all of the message; any other says where it was
        text = message if first_node else f"{node}: {message.splitlines()[0]}"
        return Verdict(node, outcome.MISTAKE, text, mistakes[0].time, final=True)
    if not failures:
        code = max((report.exit_code for report in reports.values()), default=outcome.DONE)
        return Verdict(node, code, "", now, final=False)
    if signals and all(failure.exitcode == -signals[0] for failure in failures.values()):
        text = f"dgpt: {signal.Signals(signals[0]).name} ended the workers before they could save"
        return Verdict(node, 128 + signals[0], text, now, final=False)
    first = first_failure(failures, reports)
    final = any(report.final for report in reports.values())
    return Verdict(node, outcome.FAILED, _describe(first, failures, reports), when(first, failures, reports), final)


def first_failure(failures: Mapping[int, ProcessFailure], reports: Mapping[int, outcome.Report]) -> int:
    """The rank whose failure brought the others down.

    A rank that a signal killed leaves no report, and torchrun looks only now and then, so its peers report a lost
    connection before its death is noticed: it counts as 2 seconds earlier. SIGTERM is how torchrun ends the others.
    """

    def order(rank: int) -> tuple[bool, float]:
        return failures[rank].exitcode == -signal.SIGTERM, when(rank, failures, reports)

    return min(failures, key=order)


def when(rank: int, failures: Mapping[int, ProcessFailure], reports: Mapping[int, outcome.Report]) -> float:
    """Unix time of a failure, seconds."""
    reported = reports[rank].time if rank in reports else failures[rank].timestamp
    return reported - 2 * (failures[rank].exitcode < 0)


def _describe(rank: int, failures: Mapping[int, ProcessFailure], reports: Mapping[int, outcome.Report]) -> str:
    failure, report = failures[rank], reports.get(rank)
    if report and report.final:  # all ranks ended together, for a reason that is no rank's own
        return report.message
    where = f"rank {rank} on {runtime.node()} (process {failure.pid})"
    how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"failed, exit code {failure.exitcode}"
    others = sorted(set(failures) - {rank})
    after = f"; ranks {', '.join(map(str, others))} ended after it" if others else ""
    trace = report.message.rstrip() + "\n" if report else ""
    return f"{trace}dgpt: {where} {how}{after}"
