"""What the verbs around Slurm do with their options. Heavy imports happen in the verb."""

import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from dgpt import outcome
from dgpt.config import to_toml
from dgpt.errors import UserError
from dgpt.kinds import KINDS
from dgpt.slurm import client, events, logs, status
from dgpt.slurm.client import SlurmError

if TYPE_CHECKING:
    from dgpt.submit import Wish

WATCH_SECONDS = 5.0
ACTIVE = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED")
OPTIONS = ("time", "partition", "account", "qos", "constraint", "exclude", "dependency", "array", "cpus-per-task",
           "gpus-per-node")  # fmt: skip


def submit(options: Namespace) -> int:
    from dgpt.submit import batch_script, plan, submit

    kind = KINDS[options.verb]
    settings = kind.load(options.config, options.overrides) if kind.load else None
    if options.print_config and settings:
        print(to_toml(settings), end="")
        return outcome.DONE
    planned = plan(settings, _wish(options))
    if options.dry_run:
        print("\n".join(planned.told), file=sys.stderr)
        print(batch_script(planned), end="")
        return outcome.DONE
    planned, jobs = submit(planned)
    print(f"submitted job {', '.join(jobs)}; script and output in {planned.run_dir}/slurm")
    for line in planned.told:
        print(f"  {line}")
    if kind.trains:
        print(f"  dgpt status {planned.run_dir} --watch     what it does, or why it waits\n"
              f"  dgpt logs {planned.run_dir} --follow      what the ranks write\n"
              f"  dgpt stop {planned.run_dir}               save and end")  # fmt: skip
    return outcome.DONE


def _wish(options: Namespace) -> "Wish":
    from dgpt.submit import Wish

    given = vars(options)
    sbatch = {name: str(value) for name in OPTIONS if (value := given[name.replace("-", "_")]) is not None}
    return Wish(
        verb=options.verb, nodes=options.nodes, processes_per_node=options.gpus_per_node or options.nproc or 1,
        options=sbatch, extra=tuple(options.sbatch_arg), chain=options.chain, lead_seconds=options.signal_lead,
        container=options.container or "", arguments=(options.config, *options.overrides),
    )  # fmt: skip


def stop(options: Namespace) -> int:
    """Ask the ranks to save and end; what only waits in the queue is cancelled."""
    facts = status.gather(options.run)
    if _runs(facts):
        (options.run / "stop").touch()
        print(f"{options.run}: asked to save and stop; it obeys at the end of a step, and stays stopped")
        return outcome.DONE
    if facts.job.get("JobState") == "PENDING":
        for job in _waiting(facts):
            _cancel(job, known=job == facts.job["JobId"])
        return outcome.DONE
    raise _nothing_runs(options.run, "stop")


def _waiting(facts: status.Facts) -> list[str]:
    """The job that waits and the others of its chain, the last first: the end of one lets the next one start."""
    job = facts.job["JobId"]
    chain = next((event.chain for event in reversed(facts.history) if event.job == job), job)
    return list(dict.fromkeys((*reversed(events.unstarted(facts.history, chain)), job)))


def _cancel(job: str, *, known: bool) -> None:
    """Raises UserError if Slurm refuses, though it is known that the job waits."""
    try:
        client.call("scancel", job)
        print(f"job {job} was waiting, and is cancelled")
    except SlurmError as error:
        if known:
            raise UserError(f"job {job} cannot be cancelled: {error}", rule="stop cancels what waits",
                            fix="try again, or: scancel it yourself") from None  # fmt: skip


def save(options: Namespace) -> int:
    """Ask the ranks for a checkpoint at the end of their step, and to go on."""
    if not _runs(status.gather(options.run)):
        raise _nothing_runs(options.run, "save")
    (options.run / "save").touch()
    print(f"{options.run}: asked for a checkpoint; `dgpt status {options.run}` shows when it is there")
    return outcome.DONE


def show_status(options: Namespace) -> int:
    if not options.watch:
        print("\n".join(_lines(options.run)))
        return outcome.DONE
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as screen:
        while True:
            screen.update(Text("\n".join(_lines(options.run))), refresh=True)
            time.sleep(WATCH_SECONDS)


def show_logs(options: Namespace) -> int:
    logs.show(options.run, options.restart, options.rank, follow=options.follow,
              running=lambda: _runs(status.gather(options.run), waiting=True))  # fmt: skip
    return outcome.DONE


def _lines(run: Path) -> list[str]:
    return [f"{name:9} {value}" for name, value in status.describe(status.gather(run))]


def _runs(facts: status.Facts, *, waiting: bool = False) -> bool:
    state = facts.job.get("JobState", "")
    return state in ACTIVE or (waiting and state == "PENDING") or status.alive(facts)


def _nothing_runs(run: Path, verb: str) -> UserError:
    return UserError(f"nothing runs in '{run}'", rule=f"{verb} is for a run that is training or waits in the queue",
                     fix=f"`dgpt status {run}` says how it ended")  # fmt: skip
