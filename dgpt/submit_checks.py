"""What `dgpt submit` checks of a run, and the numbers that it plans with. Needs torch, as a login node has it."""

import shutil
from pathlib import Path

import torch

from dgpt.checkpoint.compatible import read_config
from dgpt.config import FinetuneConfig, LoopConfig, RunConfig, batch_plan
from dgpt.data.shards import open_split
from dgpt.errors import UserError
from dgpt.finetune_setup import base_of, check_processes, trained_parameters
from dgpt.model.flops import parameter_count
from dgpt.parallel.engine import check_engine
from dgpt.parallel.mesh import ParallelDims
from dgpt.setup import CHECKPOINT_BYTES, check_local, check_space, check_writable, with_vocab
from dgpt.slurm import lead as measuring
from dgpt.slurm.lead import Pace
from dgpt.submit import Wish
from dgpt.tables import size_text

WRITE_BYTES_PER_SECOND = 200e6  # of one node, with hashing: a slow shared file system
UNKNOWN_STEP_SECONDS = 30.0


def check(settings: LoopConfig, wish: Wish) -> tuple[LoopConfig, tuple[str, ...]]:
    """The settings with what the data or the base says, and what was found, for people. Raises UserError for what
    cannot work."""
    check_local(settings.run_dir)
    if isinstance(settings, RunConfig) and wish.trains:
        settings = _check_pretraining(settings, wish)
    elif isinstance(settings, FinetuneConfig):
        settings = _check_finetuning(settings, wish)
    check_writable(Path(settings.run_dir))
    if not wish.trains:
        return settings, ()
    check_space(settings, _trained(settings))
    return settings, (_batch(settings, wish), _space(settings))


def _check_pretraining(config: RunConfig, wish: Wish) -> RunConfig:
    """The config with the vocabulary of its data, if that is there: another job may prepare it."""
    dims = ParallelDims(wish.ranks, config.parallel.tp)
    _check_tp(config, wish)
    batch_plan(config, dims.dp)
    half = wish.options.get("gpus-per-node") and config.precision.dtype != "fp32"
    check_engine(config, dims, torch.bfloat16 if half or config.precision.dtype == "bf16" else torch.float32)
    if not wish.options.get("dependency") or (Path(config.data.path) / "index.json").exists():
        return with_vocab(config, open_split(Path(config.data.path), "train"))
    return config


def _check_tp(config: RunConfig, wish: Wish) -> None:
    if wish.processes_per_node % config.parallel.tp:
        raise UserError(
            f"parallel.tp = {config.parallel.tp} with {wish.processes_per_node} processes on each node",
            rule="a tensor parallel group stays inside a node: its all-reduces need NVLink",
            fix="set parallel.tp to a divisor of the processes per node",
        )


def _check_finetuning(config: FinetuneConfig, wish: Wish) -> FinetuneConfig:
    """The config with the model of its base, if that is there: another job may make it."""
    check_processes(config, wish.ranks)
    batch_plan(config, wish.ranks)
    if not wish.options.get("dependency") or Path(config.base).exists():
        return config.model_copy(update={"model": read_config(base_of(config)).model})
    return config


def _trained(settings: LoopConfig) -> int:
    """Elements of what a checkpoint holds."""
    if isinstance(settings, FinetuneConfig):
        return trained_parameters(settings)
    return parameter_count(settings.model)


def _batch(settings: LoopConfig, wish: Wish) -> str:
    tp = settings.parallel.tp if isinstance(settings, RunConfig) else 1
    plan = batch_plan(settings, wish.ranks // tp)
    return (f"batch: {plan.global_batch_size} sequences = dp {plan.dp_size} x {plan.micro_batch_size} x "
            f"{plan.grad_accum_steps} micro steps, tp {tp}")  # fmt: skip


def _space(settings: LoopConfig) -> str:
    size, free = CHECKPOINT_BYTES * _trained(settings), shutil.disk_usage(settings.run_dir).free
    kept = settings.checkpoint.keep_last
    short = "; not enough for them all" * (free < size * (kept + 1))
    return f"disk: {size_text(free)} free, a checkpoint takes {size_text(size)}, {kept} are kept{short}"


def lead(settings: LoopConfig, wish: Wish) -> tuple[int, str]:
    """Seconds before the time limit at which to ask for the save, and the numbers it follows from, for people."""
    found = pace(settings, wish)
    if wish.lead_seconds:
        return wish.lead_seconds, f"signal: {wish.lead_seconds} s before the time limit, as given; {found}"
    return found.lead, f"signal: {found.lead} s before the time limit; {found}"


def pace(settings: LoopConfig, wish: Wish) -> Pace:
    """As measured in the run folder, else estimated."""
    run_dir = Path(settings.run_dir)
    step = measuring.measured_step(run_dir)
    save = measuring.measured_save(run_dir, wish.ranks) or _estimated_save(settings, wish.nodes)
    return Pace(measuring.measured_pause(run_dir), step or UNKNOWN_STEP_SECONDS, save[0],
                "measured" if step else "not measured yet", save[1])  # fmt: skip


def _estimated_save(settings: LoopConfig, nodes: int) -> tuple[float, str]:
    size = CHECKPOINT_BYTES * _trained(settings)
    return size / nodes / WRITE_BYTES_PER_SECOND, f"estimated for {size_text(size)} at 200 MB/s on each node"
