"""Everything that can be wrong with a fine-tuning, found before the first collective and alike on every rank."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dgpt.checkpoint.compatible import is_finetuned, model_difference, read_config
from dgpt.checkpoint.find import Found, find_latest
from dgpt.checkpoint.format import CheckpointError
from dgpt.config import BatchPlan, FinetuneConfig, ModelConfig, batch_plan, flat, parse_settings
from dgpt.config.finetune import LINEAR_LAYERS
from dgpt.errors import UserError
from dgpt.finetuned import hash_of, open_base
from dgpt.generate import tokenizer_of
from dgpt.model.flops import parameter_count
from dgpt.model.gpt import GPT
from dgpt.parallel.mesh import ParallelDims
from dgpt.runtime import Runtime
from dgpt.setup import Setup, check_local, check_writable, compute_dtype
from dgpt.tasks.base import Example, Task
from dgpt.tasks.loader import Sample, TaskLoader
from dgpt.tasks.packing import pack
from dgpt.tasks.registry import balanced_weights, find_labels, holds_conversations, task_of
from dgpt.tasks.rows import Row
from dgpt.tasks.sources import Splits, draw, read_splits

FIXED = ("task.kind", "task.labels", "task.multi_label", "lora.rank", "lora.alpha", "lora.targets")  # once a run began


@dataclass(frozen=True)
class HeldOut:
    """What is measured, and not learnt."""

    samples: Sequence[Sample]  # for the loss
    queries: Sequence[Any]  # for the answers, one a row
    golds: Sequence[Any]


@dataclass(frozen=True)
class FinetuneSetup(Setup):
    config: FinetuneConfig  # with model, labels, base and steps filled in
    loader: TaskLoader
    task: Task
    base: Found
    held_out: HeldOut
    n_examples: int
    notes: tuple[str, ...]  # what is to be said of the examples


def check(config: FinetuneConfig, runtime: Runtime) -> FinetuneSetup:
    """Open the base, read and tokenise all examples, make the run folder. Raises UserError for what cannot work."""
    check_local(config.run_dir)
    check_processes(config, runtime.world_size)
    dims = ParallelDims(runtime.world_size, 1)
    plan = batch_plan(config, dims.dp)
    earlier, base = _earlier(config), base_of(config)
    tokenizer = tokenizer_of(base)
    splits = read_splits(config.data, config.seed)
    config = _resolved(config, base, splits)
    if earlier:
        _check_same_run(earlier, config)
    task = task_of(config, tokenizer, balanced_weights(config, splits.train))
    examples = [example for row in splits.train for example in task.examples(row)]
    loader = TaskLoader(task, _samples(examples, config), seed=config.seed, plan=plan, dp_rank=runtime.rank)
    notes = tuple(_notes(task, "training"))
    held_out, more_notes = _held_out(task_of(config, tokenizer), splits.validation, config)  # each counts the same
    config = _with_steps(config, plan, loader)
    check_writable(Path(config.run_dir))
    dtype = compute_dtype(config, runtime.device)
    return FinetuneSetup(config, dims, plan, dtype, loader, tokenizer, splits.hash, task, base, held_out,
                         len(examples), notes + more_notes)  # fmt: skip


def base_of(config: FinetuneConfig) -> Found:
    """The checkpoint that a run begins with, or began with. Raises UserError if it cannot be opened."""
    return open_base(_with_earlier_base(config, _earlier(config)))


def trained_parameters(config: FinetuneConfig) -> int:
    """Elements of what a checkpoint holds, but for the head of the task; `config` has the model of the base."""
    model, rank = config.model, config.lora.rank
    if not rank:
        return parameter_count(model)
    return model.n_layer * len(config.lora.targets) * rank * (model.n_embd + max(model.n_embd, model.ff_width))


def check_processes(config: FinetuneConfig, world_size: int) -> None:
    """Raises UserError for what so many processes cannot do."""
    if config.parallel.zero_stage and world_size == 1:
        raise UserError(f"parallel.zero_stage = {config.parallel.zero_stage} with one process",
                        rule="DeepSpeed shards over several processes",
                        fix="start with `--nproc 2` or more, or set parallel.zero_stage=0")  # fmt: skip
    if config.parallel.offload_optimizer and not config.parallel.zero_stage:
        raise UserError("parallel.offload_optimizer = true with parallel.zero_stage = 0",
                        rule="only sharded optimizer state can be offloaded",
                        fix="set parallel.zero_stage=1")  # fmt: skip


def _earlier(config: FinetuneConfig) -> FinetuneConfig | None:
    """The settings of the run's newest checkpoint, if there is one. Raises UserError if it is of no fine-tuning."""
    found = find_latest(config.run_dir)
    if found is None:
        return None
    if not is_finetuned(found):
        raise UserError(f"run_dir = '{config.run_dir}' holds checkpoints of a pretraining",
                        rule="a fine-tuning writes into a run folder of its own",
                        fix=f"set run_dir to a new folder, and base to '{config.run_dir}'")  # fmt: skip
    settings = read_config(found)
    assert isinstance(settings, FinetuneConfig)
    return settings


def _with_earlier_base(config: FinetuneConfig, earlier: FinetuneConfig | None) -> FinetuneConfig:
    """A run goes on from the checkpoint that it began with, also when its base, a run, has newer ones by now."""
    if earlier is None or not Path(earlier.base).is_relative_to(Path(config.base).absolute()):
        return config
    if not config.lora.rank and not Path(earlier.base).exists():
        return config  # its weights are in the run's own checkpoints by now
    kept = {"base": earlier.base, "base_hash": earlier.base_hash if config.lora.rank else ""}
    return config.model_copy(update=kept)


def _resolved(config: FinetuneConfig, base: Found, splits: Splits) -> FinetuneConfig:
    """With what comes from the base and the examples filled in."""
    model = read_config(base).model
    _check_model(config, model, base)
    if config.data.max_tokens > model.seq_len:
        raise UserError(f"data.max_tokens = {config.data.max_tokens} is above the base's seq_len = {model.seq_len}",
                        rule="an example fits into the context of the model",
                        fix=f"set data.max_tokens={model.seq_len}, or 0")  # fmt: skip
    _check_targets(config, model)
    values = config.model_dump(mode="json")
    values["model"] = model.model_dump(mode="json") | {"dropout": config.training.dropout}
    values["task"] |= {"labels": find_labels(config, splits.train), "chat": holds_conversations(config, splits.train)}
    values["base"] = str(base.folder.absolute() if isinstance(base.folder, Path) else base.folder)
    values["base_hash"] = hash_of(base)
    return parse_settings(FinetuneConfig, values, f"with the model of {config.base}")


def _check_model(config: FinetuneConfig, model: ModelConfig, base: Found) -> None:
    """[model] may be left away; a file that gives it, as a run's config.toml does, must mean the base."""
    difference = model_difference(model, config.model.model_copy(update={"dropout": model.dropout}))
    if "model" in config.model_fields_set and difference:
        name, theirs, ours = difference
        reason = f"is of another model: model.{name} = {theirs!r} there, {ours!r} in this run"
        raise CheckpointError(base.folder, reason, fix="leave [model] away: it comes with the base")


def _check_targets(config: FinetuneConfig, model: ModelConfig) -> None:
    """Raises UserError for a layer that is to get updates, and that the base does not have."""
    with torch.device("meta"):
        layers = dict(GPT(model).blocks[0].named_modules())
    known = [name for name in LINEAR_LAYERS if name in layers]
    for name in config.lora.targets if config.lora.rank else ():
        if name not in known:
            raise UserError(f"lora.targets has '{name}', and the model of {config.base} has no such layer",
                            rule=f"with model.mlp = '{model.mlp}' the layers are {', '.join(known)}",
                            fix=f"leave '{name}' away")  # fmt: skip


def _check_same_run(earlier: FinetuneConfig, config: FinetuneConfig) -> None:
    """Raises UserError if the newest checkpoint was trained for something else."""
    then, now = (flat(c.model_dump(mode="json", include={"task", "lora"})) for c in (earlier, config))
    for name in [n for n in then | now if n.startswith(FIXED)]:
        if then.get(name) != now.get(name):
            raise UserError(f"{name} = {now.get(name)} now, {then.get(name)} in the checkpoints of {config.run_dir}",
                            rule="a run learns one task from its first step to its last",
                            fix="set it back, or give this fine-tuning another run_dir")  # fmt: skip
    if config.lora.rank and earlier.base_hash != config.base_hash:
        raise UserError(f"base = '{config.base}' now, '{earlier.base}' in the checkpoints of {config.run_dir}",
                        rule="LoRA is a change to the very weights that it was trained on",
                        fix="set it back, or give this fine-tuning another run_dir")  # fmt: skip


def _samples(examples: Sequence[Example], config: FinetuneConfig) -> list[Sample]:
    if not (config.task.is_language_model and config.data.packing):
        return [[example] for example in examples]
    capacity = config.data.max_tokens or config.model.seq_len
    return [[examples[i] for i in numbers] for numbers in pack([e.length for e in examples], capacity)]


def _held_out(task: Task, rows: Sequence[Row], config: FinetuneConfig) -> tuple[HeldOut, tuple[str, ...]]:
    """And what is to be said of them."""
    chosen = draw(rows, config.training.eval_samples, config.seed)
    kept = [(task.learnt(row), examples) for row in chosen if (examples := task.examples(row))]
    notes = tuple(_notes(task, "held-out"))
    most = config.training.eval_generations if config.task.is_language_model else None
    answered = draw(kept, most, config.seed)
    samples = _samples([example for _, examples in kept for example in examples], config)
    queries = _each(task.query, answered)
    if config.task.is_language_model and (cut := task.take_counts()[1]):  # else these are the examples again
        notes += (f"cut {cut} held-out prompts: with task.max_new_tokens they are above the model's seq_len",)
    return HeldOut(samples, queries, _each(task.gold, answered)), notes


def _each(ask: Callable[[Row], Any], kept: Sequence[tuple[Row, list[Example]]]) -> list[Any]:
    return [ask(row) for row, _ in kept]


def _with_steps(config: FinetuneConfig, plan: BatchPlan, loader: TaskLoader) -> FinetuneConfig:
    if config.training.steps:
        return config
    values = config.model_dump(mode="json")
    passes = config.training.epochs * len(loader.samples) / plan.global_batch_size
    values["training"]["steps"] = max(1, math.ceil(passes))
    return parse_settings(
        FinetuneConfig, values, f"with training.steps from training.epochs = {config.training.epochs}"
    )


def _notes(task: Task, which: str) -> Iterator[str]:
    """What was left out or cut since the last call."""
    skipped, cut = task.take_counts()
    limit = f"{task.max_tokens} tokens (data.max_tokens)"
    if skipped:
        yield f"left out {skipped} {which} examples above {limit}"
    if cut:
        yield f"cut {cut} {which} examples to {limit}"
