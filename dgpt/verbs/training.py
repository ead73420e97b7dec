"""Preparing and pretraining, curves and parity."""

import sys
from argparse import Namespace
from itertools import pairwise

from dgpt import outcome
from dgpt.config import RunConfig


def prepare(config: RunConfig, options: Namespace) -> int:
    from rich.console import Console

    from dgpt.data import inspect
    from dgpt.data import prepare as preparing

    console = Console()
    if options.inspect:
        inspect.inspect(config.data.path, console=console)
    elif options.verify:
        inspect.verify(config.data.path, console=console)
    else:
        preparing.prepare(config, console=console)
    return outcome.DONE


def pretrain(config: RunConfig, options: Namespace) -> int:
    start_processes(options.nproc)
    from dgpt.pretrain import pretrain

    return pretrain(config)


def parity(config: RunConfig, options: Namespace) -> int:
    start_processes(options.nproc)
    from dgpt.errors import TrainingError
    from dgpt.parallel.parity import compare

    if not compare(config, options.steps, options.tolerance):
        raise TrainingError(f"not all topologies are within --tolerance = {options.tolerance:g} of one process")
    return outcome.DONE


def tensorboard(options: Namespace) -> int:
    from dgpt.train.board import serve

    serve(options.run_dir, options.port)
    return outcome.DONE


def start_processes(nproc: int | None) -> None:
    """Become torchrun if the verb wants several processes; come back in each of them, or at once if one is enough."""
    from dgpt import launch

    processes = launch.local_processes(nproc)
    if launch.needs_torchrun(processes):
        launch.launch(["-m", "dgpt.cli", *_without_nproc(sys.argv[1:])], processes)


def _without_nproc(arguments: list[str]) -> list[str]:
    """The workers' command line. torchrun takes --nproc for an abbreviation of its own option."""
    kept = [word for before, word in pairwise(["", *arguments]) if "--nproc" not in (before, word)]
    return [word for word in kept if not word.startswith("--nproc=")]
