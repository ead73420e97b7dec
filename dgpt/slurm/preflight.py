"""The step that examines the nodes of a job before its ranks start (dgpt.doctor), and what its report means."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpt.doctor.report import Report, line
from dgpt.errors import UserError
from dgpt.outcome import FAILED
from dgpt.slurm import client, launch
from dgpt.slurm.client import SlurmError
from dgpt.slurm.policy import End
from dgpt.slurm.runtime import Job, this_job, with_variables

WAIT_SECONDS = 120  # after the end of the first task
STEP_SECONDS = 240.0  # then the step is killed, and what its tasks have printed counts


@dataclass(frozen=True)
class Finding:
    """What a job does after its preflight."""

    lines: tuple[str, ...]  # to print, one for each problem
    end: End | None  # the job cannot train on these nodes; None: go on


def command(job: Job, nodes: int, python: str, arguments: Sequence[str]) -> list[str]:
    """One task on each node, none of which ends the others: the first one has to say who is missing."""
    options = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={job.cpus_per_task}",
               "--kill-on-bad-exit=0", f"--wait={WAIT_SECONDS}", "--input=none", "--export=ALL"]  # fmt: skip
    return ["srun", *options, *launch.in_container(job.container, [python, "-m", "dgpt.doctor", *arguments])]


def by_hand(python: str, arguments: Sequence[str]) -> Report:
    """Examine the nodes of the allocation that this shell is in. Raises UserError."""
    job = this_job()
    try:
        addresses = launch.reachable(client.node_addresses(job.nodelist), job.node) if job else {}
    except SlurmError as error:
        raise _no_report(str(error)) from None
    if job is None:
        raise _no_report("this is no allocation")
    port = launch.choose_port(int(job.id), 0, launch.port_is_free)
    settings = variables(launch.variables(job, list(addresses.values()), port, 0, Path.cwd()), addresses)
    step = subprocess.run(
        command(job, len(addresses), python, arguments), env=with_variables(settings), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, text=True, timeout=STEP_SECONDS, check=False,
    )  # fmt: skip
    found = [found for text in step.stdout.splitlines() if (found := _object(text)) and "report" in found]
    if not found:
        raise _no_report("\n".join(read(step.stdout, addresses).lines))
    return Report.of(found[0]["report"])


def _no_report(why: str) -> UserError:
    return UserError(
        f"no report of the nodes: {why}", rule="`dgpt doctor` in an allocation runs a step on all its nodes",
        fix="what srun said above names the node; leave it out with --exclude",
    )  # fmt: skip


def variables(settings: Mapping[str, str], addresses: Mapping[str, str]) -> dict[str, str]:
    """Those of the ranks, and the names of the nodes: the silent ones cannot say their own."""
    return {**settings, "DGPT_NODES": " ".join(addresses)}


def read(output: str, addresses: Mapping[str, str]) -> Finding:
    """From what the tasks printed."""
    said = [found for text in output.splitlines() if (found := _object(text))]
    reports = [Report.of(found["report"]) for found in said if "report" in found]
    lost = [f"preflight: {found['unreached']} does not reach {next(iter(addresses))}: {found['error']}"
            for found in said if "unreached" in found]  # fmt: skip
    if not reports:
        return Finding((*lost, "preflight: no report; going on without one"), None)
    report = reports[0]
    healthy = f"preflight: {len(report.readings)} nodes, {report.world} ranks, {report.seconds:.1f} s"
    lines = (*lost, *map(line, report.problems))
    return Finding((*lines, healthy) if not report.fatal else lines, end_of(report))


def end_of(report: Report) -> End | None:
    """As if the ranks had ended so. Without a suspect it is nobody's fault here, and another start ends alike."""
    if not report.fatal:
        return None
    text = "\n".join(f"dgpt: preflight: {problem}" for problem in report.fatal)
    lasting = not report.suspects and not all(problem.passing for problem in report.fatal)
    reason = f"dgpt: the preflight found: {report.fatal[0].what}"
    return End(FAILED, f"{text}\n{reason}", report.suspects, final=lasting, unfit=bool(report.suspects))


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
