"""`dgpt submit`: check a run against the topology it is to have, write its batch script, and give it to Slurm."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from dgpt.config import LoopConfig
from dgpt.errors import UserError
from dgpt.kinds import KINDS
from dgpt.scripts import script
from dgpt.slurm import client, events, exclude
from dgpt.slurm.client import NoSlurmError, SlurmError
from dgpt.slurm.events import Event
from dgpt.slurm.exclude import Choice
from dgpt.slurm.render import render
from dgpt.slurm.requeue import newest_step

BESIDE_A_MODEL = "evaluations"  # for jobs on a model that is in no run folder


@dataclass(frozen=True)
class Wish:
    """What a submission asks for."""

    verb: str  # of dgpt.kinds
    nodes: int
    processes_per_node: int  # ranks: one for each GPU, or as many as said on CPUs
    options: dict[str, str]  # of sbatch, by name
    extra: tuple[str, ...]  # options of sbatch that dgpt has no name for
    chain: int  # jobs that follow one another
    lead_seconds: int | None  # before the time limit; None works it out
    container: str
    arguments: tuple[str, ...]  # RUN.toml or a model, and what follows it, as given

    @property
    def trains(self) -> bool:
        return KINDS[self.verb].trains

    @property
    def ranks(self) -> int:
        return self.nodes * self.processes_per_node


@dataclass(frozen=True)
class Plan:
    """A submission that has been checked."""

    wish: Wish
    run_dir: Path  # that keeps script, output and events
    lead: int  # seconds before the time limit; 0: no signal
    left_out: Choice
    notes: tuple[str, ...] = ()  # which numbers were used, for people

    @property
    def folder(self) -> Path:
        return self.run_dir.absolute() / "slurm"

    @property
    def told(self) -> tuple[str, ...]:
        """Lines for people."""
        return (*self.notes, *self.left_out.text.splitlines())


def plan(settings: LoopConfig | None, wish: Wish) -> Plan:
    """Everything that can be known before the job starts. settings: None for a verb on a model. Raises UserError."""
    check_array(wish.options.get("array", ""))
    if not wish.trains:
        check_simple(wish)
    if settings is None:
        return Plan(wish, run_folder(wish.arguments[0]), 0, Choice((), (), ""))
    from dgpt.submit_checks import check, lead

    settings, notes = check(settings, wish)
    seconds, run_dir = 0, Path(settings.run_dir)
    if wish.trains:
        seconds, used = lead(settings, wish)
        check_lead(seconds, wish.options.get("time", ""))
        notes = (*notes, used)
    left_out = exclude.for_submission(run_dir, wish.options.get("exclude", ""), wish.options.get("partition", ""),
                                      wish.nodes, settings.slurm)  # fmt: skip
    return Plan(wish, run_dir, seconds, left_out, notes)


def check_simple(wish: Wish) -> None:
    """Raises UserError for options that mean something to a run that trains alone."""
    given = {"--nodes": wish.nodes, "--chain": wish.chain, "--signal-lead": wish.lead_seconds or 0}
    if "gpus-per-node" not in wish.options:
        given["--nproc"] = wish.processes_per_node
    for name, number in given.items():
        if number > 1:
            raise UserError(
                f"{name} = {number} with --verb {wish.verb}",
                rule=f"{wish.verb} is one job on one node",
                fix=f"leave {name} away" + "; after -- it is the verb's own" * (wish.verb == "evaluate"),
            )


def run_folder(model: str) -> Path:
    """Where the output of a job on a model goes: the run folder that the model is of, or one here."""
    path = Path(model)
    for folder in (path, *path.parents[:2]):
        if (folder / "checkpoints").is_dir():
            return folder
    return Path(BESIDE_A_MODEL)


def check_array(array: str) -> None:
    """Raises UserError if its jobs could run at the same time."""
    if array and not array.endswith("%1"):
        raise UserError(f"--array = {array} would run jobs of one run at the same time",
                        rule="one job at a time writes to a run folder",
                        fix=f"--array={array.partition('%')[0]}%1 runs them one after the other; for runs "
                        "of their own, submit each with its run_dir=...")  # fmt: skip


def check_lead(lead: int, time: str) -> None:
    """Raises UserError if a job would be asked to stop as soon as it has begun."""
    limit = limit_seconds(time)
    if limit and lead >= limit:
        raise UserError(f"--time = {time} is {limit} s, and the signal to save comes {lead} s before its end",
                        rule="a job trains before it saves",
                        fix="give more --time, or a shorter --signal-lead SECONDS if the save is quick")  # fmt: skip


def limit_seconds(text: str) -> int | None:
    """Seconds of a time of sbatch: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. Raises UserError; None for an empty text."""
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not text or text.upper() in ("UNLIMITED", "INFINITE"):
        return None
    fields = (*parts, *([days] if dash else []))
    if len(parts) > 3 or not all(part.isdecimal() and len(part) < 7 for part in fields):
        raise UserError(f"--time = {text} is no time", rule="minutes, minutes:seconds, hours:minutes:seconds, or with "
                        "days-hours[:minutes[:seconds]]", fix="write for example --time 24:00:00")  # fmt: skip
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, minutes, seconds = (0, *numbers, 0)[:3] if len(numbers) < 3 else numbers
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def batch_script(plan: Plan, chain: str = "") -> str:
    """The text for sbatch; the chain stands in it, as a job need not inherit the environment (--export=NONE)."""
    wish = plan.wish
    template = script(f"slurm/{wish.verb}.sbatch").read_text(encoding="utf-8")
    options = {"job-name": f"dgpt-{plan.run_dir.name}", "output": f"{_literal(plan.folder)}/job_%j.out",
               "chdir": str(Path.cwd()), **wish.options}  # fmt: skip
    if plan.left_out.added:
        options["exclude"] = ",".join(filter(None, (wish.options.get("exclude"), *plan.left_out.added)))
    exports = {"DGPT_PYTHON": sys.executable}
    exports |= {"DGPT_CONTAINER": wish.container} if wish.container else {}
    if wish.trains:
        exports |= {"DGPT_CHAIN": chain} if chain else {}
        options |= {"nodes": str(wish.nodes), "signal": f"B:USR1@{plan.lead}"}
        exports["NPROC_PER_NODE"] = str(wish.processes_per_node)  # not that of the login shell
    return render(template, options, wish.extra, exports, wish.arguments)


def submit(plan: Plan) -> tuple[Plan, list[str]]:
    """What was submitted, and the job ids, of a chain all of them. Raises UserError if Slurm refuses.

    Where Slurm has too few nodes without those that are to be left out, they are not.
    """
    run_dir, folder = plan.run_dir.absolute(), plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    chain, jobs = f"chain-{uuid4().hex[:12]}", list[str]()
    for _ in range(plan.wish.chain):
        after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else []
        try:
            jobs.append(_sbatch(after, batch_script(plan, chain)))
        except UserError as error:
            if jobs:
                raise _without(jobs, error) from None
            if not plan.left_out.added:
                raise
            everywhere = Choice((), plan.left_out.added, "no node is left out: Slurm has too few others for the job")
            return submit(replace(plan, left_out=everywhere))
        (folder / f"job_{jobs[-1]}.sbatch").write_text(batch_script(plan, chain), encoding="utf-8")
        if plan.wish.trains:
            events.record(run_dir, Event(events.now(), "submit", jobs[-1], chain, 0, (), newest_step(run_dir)))
        if plan.left_out.added:
            exclude.note(run_dir, jobs[-1], chain, plan.left_out)
    return plan, jobs


def _sbatch(options: Sequence[str], text: str) -> str:
    try:
        return client.submit(options, {}, text)
    except NoSlurmError as error:
        raise UserError(
            f"nothing is submitted: {error}", rule="submit needs a machine with Slurm's commands",
            fix="run it on a login node; `dgpt submit --dry-run` prints the script anywhere",
        ) from None  # fmt: skip
    except SlurmError as error:
        raise UserError(
            f"Slurm refuses the job: {error}", rule="the options fit the partition, the account and its limits",
            fix=f"change the option that it names{_look()}",
        ) from None  # fmt: skip


def _without(jobs: Sequence[str], error: UserError) -> UserError:
    """The error for a chain of which Slurm takes only the first jobs. They are cancelled: nobody would know of them."""
    left = list[str]()
    for job in reversed(jobs):
        try:
            client.call("scancel", job)
        except SlurmError:
            left.append(job)
    still = f", but not {', '.join(left)}: scancel {' '.join(left)}" if left else ""
    return UserError(f"{error.what}; the jobs of the chain before it ({', '.join(jobs)}) are cancelled{still}",
                     rule=error.rule, fix=f"{error.fix}; or a shorter --chain")  # fmt: skip


def _look() -> str:
    return "; `sinfo -s` shows partitions, `sacctmgr show assoc user=$USER` accounts" * bool(shutil.which("sinfo"))


def _literal(folder: Path) -> str:
    """A path in --output, where sbatch replaces %j and the like."""
    return str(folder).replace("%", "%%")
