"""`dgpt doctor`: the nodes of a job, or this machine, examined by hand."""

import sys
from argparse import Namespace
from pathlib import Path

from dgpt import outcome
from dgpt.doctor.report import Report


def doctor(options: Namespace) -> int:
    """0: fit; 1: nothing can be trained here."""
    from dgpt.doctor.runtime import in_allocation
    from dgpt.kinds import load

    if options.config:
        load(options.verb, options.config, options.overrides)  # a mistake in it is said at once
    report = _of_allocation(options) if in_allocation() else _of_this_place(options)
    if report is None:  # another node than the first
        return outcome.DONE
    from dgpt.doctor.show import show

    show(report)
    return outcome.FAILED if report.fatal else outcome.DONE


def _arguments(options: Namespace) -> list[str]:
    return [options.verb, options.config, *options.overrides] if options.config else []


def _of_this_place(options: Namespace) -> Report | None:
    from dgpt.doctor.case import Case, case_of
    from dgpt.doctor.examine import examine
    from dgpt.doctor.runtime import this_place
    from dgpt.errors import UserError

    place = this_place()
    case = case_of(options.verb, options.config, options.overrides) if options.config else Case(Path.cwd())
    try:
        return examine(place, case)
    except OSError as error:
        raise UserError(
            f"{place.node} does not reach the first node at {place.address}:{place.port}: {error}",
            rule="`dgpt doctor` runs on every node at once, and the first one hosts it",
            fix="start it there too; else look at MASTER_ADDR, MASTER_PORT and the firewall",
        ) from None


def _of_allocation(options: Namespace) -> Report | None:
    """By a step of one task on each node, as in the preflight of a job."""
    from dgpt.slurm import preflight

    return preflight.by_hand(sys.executable, _arguments(options))
