"""`dgpt submit`: check a run against the topology it is to have, write its batch script, and give it to Slurm."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch

from dgpt.config import RunConfig, batch_plan
from dgpt.data.shards import open_split
from dgpt.errors import UserError
from dgpt.model.flops import parameter_count
from dgpt.parallel.engine import check_engine
from dgpt.parallel.mesh import ParallelDims
from dgpt.scripts import script
from dgpt.setup import CHECKPOINT_BYTES, check_local, check_space, check_writable, with_vocab
from dgpt.slurm import client, events
from dgpt.slurm.client import NoSlurmError, SlurmError
from dgpt.slurm.events import Event
from dgpt.slurm.render import render
from dgpt.slurm.requeue import newest_step

WRITE_BYTES_PER_SECOND = 200e6  # of one node, with hashing: a slow shared file system
SHORTEST_LEAD_SECONDS, LONGEST_LEAD_SECONDS = 120, 3600
LATE_SECONDS = 60  # Slurm looks at time limits every 30 seconds


@dataclass(frozen=True)
class Wish:
    """What a submission asks for."""

    verb: str  # pretrain, prepare
    nodes: int
    processes_per_node: int  # ranks: one for each GPU, or as many as said on CPUs
    options: dict[str, str]  # of sbatch, by name
    extra: tuple[str, ...]  # options of sbatch that dgpt has no name for
    chain: int  # jobs that follow one another
    lead_seconds: int | None  # before the time limit; None works it out
    container: str
    arguments: tuple[str, ...]  # RUN.toml and overrides, as given


def check(config: RunConfig, wish: Wish) -> RunConfig:
    """Everything that can be known before the job starts. Raises UserError."""
    check_local(config.run_dir)
    _check_array(wish.options.get("array", ""))
    if wish.verb == "pretrain":
        dims = ParallelDims(wish.nodes * wish.processes_per_node, config.parallel.tp)
        _check_tp(config, wish)
        batch_plan(config, dims.dp)
        half = wish.options.get("gpus-per-node") and config.precision.dtype != "fp32"
        check_engine(config, dims, torch.bfloat16 if half or config.precision.dtype == "bf16" else torch.float32)
        if not wish.options.get("dependency") or (Path(config.data.path) / "index.json").exists():
            config = with_vocab(config, open_split(Path(config.data.path), "train"))
    check_writable(Path(config.run_dir))
    if wish.verb == "pretrain":
        check_space(config, parameter_count(config.model))
    return config


def _check_tp(config: RunConfig, wish: Wish) -> None:
    if wish.processes_per_node % config.parallel.tp:
        raise UserError(
            f"parallel.tp = {config.parallel.tp} with {wish.processes_per_node} processes on each node",
            rule="a tensor parallel group stays inside a node: its all-reduces need NVLink",
            fix="set parallel.tp to a divisor of the processes per node",
        )


def _check_array(array: str) -> None:
    if array and not array.endswith("%1"):
        raise UserError(f"--array = {array} would run jobs of one run at the same time",
                        rule="one job at a time writes to a run folder",
                        fix=f"--array={array}%1 runs them one after the other; for runs of their own, submit each with "
                        "its run_dir=...")  # fmt: skip


def lead_seconds(config: RunConfig, nodes: int, seconds_per_step: float) -> int:
    """How long before the time limit to ask for the save: two steps, a checkpoint written twice as slowly as on a slow
    file system, and how late Slurm may be."""
    save = CHECKPOINT_BYTES * parameter_count(config.model) / nodes / WRITE_BYTES_PER_SECOND
    lead = LATE_SECONDS + 2 * seconds_per_step + 2 * save
    return round(min(max(lead, SHORTEST_LEAD_SECONDS), LONGEST_LEAD_SECONDS))


def batch_script(config: RunConfig, wish: Wish, folder: Path) -> str:
    """The text for sbatch."""
    template = script(f"slurm/{wish.verb}.sbatch").read_text(encoding="utf-8")
    options = {"job-name": f"dgpt-{Path(config.run_dir).name}", "output": f"{_literal(folder)}/job_%j.out",
               "chdir": str(Path.cwd()), **wish.options}  # fmt: skip
    exports = {"DGPT_PYTHON": sys.executable}
    if wish.verb == "pretrain":
        lead = wish.lead_seconds or lead_seconds(config, wish.nodes, seconds_per_step(config))
        check_lead(lead, wish.options.get("time", ""))
        options |= {"nodes": str(wish.nodes), "signal": f"B:USR1@{lead}"}
        exports |= {"DGPT_CONTAINER": wish.container} if wish.container else {}
        exports |= {} if "gpus-per-node" in wish.options else {"NPROC_PER_NODE": str(wish.processes_per_node)}
    return render(template, options, wish.extra, exports, wish.arguments)


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
    if len(parts) > 3 or not all(part.isdecimal() for part in (*parts, *([days] if dash else []))):
        raise UserError(f"--time = {text} is no time", rule="minutes, minutes:seconds, hours:minutes:seconds, or with "
                        "days-hours[:minutes[:seconds]]", fix="write for example --time 24:00:00")  # fmt: skip
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, minutes, seconds = (0, *numbers, 0)[:3] if len(numbers) < 3 else numbers
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def seconds_per_step(config: RunConfig) -> float:
    """As measured in the run folder; 30 if the run has never logged a step."""
    from dgpt.train.rows import read_rows

    path = Path(config.run_dir) / "metrics.jsonl"
    rows = [row.get("speed/seconds_per_step") for row in read_rows(path)] if path.is_file() else []
    return next((value for value in reversed(rows) if value), 30.0)


def submit(config: RunConfig, wish: Wish) -> list[str]:
    """Job ids, of a chain all of them. Raises UserError if Slurm refuses."""
    run_dir = Path(config.run_dir).absolute()
    folder = run_dir / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    text = batch_script(config, wish, folder)
    chain, jobs = f"chain-{uuid4().hex[:12]}", list[str]()
    for _ in range(wish.chain):
        after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else []
        jobs.append(_sbatch(after, chain, text))
        (folder / f"job_{jobs[-1]}.sbatch").write_text(text, encoding="utf-8")
        if wish.verb == "pretrain":
            events.record(run_dir, Event(events.now(), "submit", jobs[-1], chain, 0, (), newest_step(run_dir)))
    return jobs


def _sbatch(options: Sequence[str], chain: str, text: str) -> str:
    try:
        return client.submit(options, {"DGPT_CHAIN": chain}, text)
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


def _look() -> str:
    return "; `sinfo -s` shows partitions, `sacctmgr show assoc user=$USER` accounts" * bool(shutil.which("sinfo"))


def _literal(folder: Path) -> str:
    """A path in --output, where sbatch replaces %j and the like."""
    return str(folder).replace("%", "%%")
