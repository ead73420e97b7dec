"""`dgpt evaluate`."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpt import outcome
from dgpt.errors import UserError
from dgpt.verbs.training import start_processes

if TYPE_CHECKING:
    import torch

    from dgpt.checkpoint.find import Found

TIMEOUT_SECONDS = 1800  # of a collective: the ranks may be as far apart as their batches


def evaluate(options: Namespace) -> int:
    from dgpt.watch.runtime import under_torchrun

    _check(options)
    if not under_torchrun() and _asks_for_task(options):
        _print(*_task(options), options)
        return outcome.DONE
    start_processes(options.nproc)
    from dgpt import runtime as processes
    from dgpt.generate import choose

    runtime = processes.start(TIMEOUT_SECONDS)
    found = runtime.on_main(lambda: choose(options.model))  # one checkpoint for all, though a run goes on saving
    measure = _harness if options.lm_eval else _text
    result = measure(found, runtime, options)
    if runtime.is_main:
        _print(found, result, options)
    processes.finish()
    return outcome.DONE


def _print(found: "Found", result: dict[str, Any], options: Namespace) -> None:
    facts = {"model": str(found.folder), "step": found.manifest.step, **result}
    print(json.dumps(facts, ensure_ascii=False)) if options.json else _show(facts)


def _asks_for_task(options: Namespace) -> bool:
    """Whether the measure is a fine-tuned model's task. Raises UserError for several processes, or for windows."""
    from dgpt import launch
    from dgpt.checkpoint.compatible import is_finetuned
    from dgpt.generate import choose

    if options.text or options.lm_eval or not is_finetuned(choose(options.model)):
        return False
    if options.nproc is not None and launch.local_processes(options.nproc) > 1:
        raise UserError(f"--nproc = {options.nproc} for the task of a fine-tuned model",
                        rule="one process answers all rows: F1 and the like are no means over rows",
                        fix="leave --nproc away; --text measures the loss on text, on any number")  # fmt: skip
    for name, value in (("--stride", options.stride), ("--seq-len", options.seq_len)):
        if value is not None:
            raise UserError(f"{name} = {value} for the task of a fine-tuned model",
                            rule="its rows are read as in training; windows are for --text",
                            fix=f"leave {name} away, or add --text")  # fmt: skip
    return True


def _task(options: Namespace) -> "tuple[Found, dict[str, Any]]":
    from dgpt.finetuned import load_finetuned
    from dgpt.generate import choose
    from dgpt.tasks.evaluate import evaluate_task
    from dgpt.tasks.rows import read_rows
    from dgpt.tasks.sources import draw, read_splits

    found = choose(options.model)
    model = load_finetuned(found.folder)
    data = model.config.data
    rows = list(read_rows(options.data)) if options.data else read_splits(data, model.config.seed).validation
    rows = draw(rows, options.limit, model.config.seed)
    model.model.to(_dtype(options.dtype))
    scores = evaluate_task(model, rows, batch_size=options.batch_size)
    skipped, cut = model.task.take_counts()
    if skipped:
        print(f"left out {skipped} rows above {model.task.max_tokens} tokens (data.max_tokens)", file=sys.stderr)
    if cut:
        print("rows that are longer than the model reads were cut", file=sys.stderr)
    named = str(options.data) if options.data else f"validation rows of {data.dataset or data.validation or data.path}"
    return found, {"task": model.config.task.kind, "data": named, "rows": len(rows) - skipped, **scores}


def _check(options: Namespace) -> None:
    """Raises UserError for options that have no meaning together."""
    only = {"--include-path": options.include_path, "--num-fewshot": options.num_fewshot}
    other = {"DATA": options.data, "--stride": options.stride, "--seq-len": options.seq_len}
    for name, value in (other if options.lm_eval else only).items():
        if value is not None:
            raise UserError(f"{name} = '{value}' " + ("with" if options.lm_eval else "without") + " --lm-eval",
                            rule="a harness task brings its own text, and only it takes --include-path, --num-fewshot",
                            fix=f"leave {name} away")  # fmt: skip


def _text(found: "Found", runtime: Any, options: Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from dgpt.checkpoint.compatible import read_config
    from dgpt.config import RunConfig
    from dgpt.evaluate import Plan, check_plan, evaluate, open_data
    from dgpt.generate import load_model

    config = read_config(found)
    path = options.data or (Path(config.data.path) if isinstance(config, RunConfig) else None)
    if path is None:
        raise UserError("--text without DATA", rule="a fine-tuned model's own data are rows of its task, not text",
                        fix="name a prepared folder or a file of text")  # fmt: skip
    seq_len = options.seq_len or config.model.seq_len
    plan = Plan(seq_len, options.stride or seq_len, options.batch_size, options.limit or 0,
                isinstance(config, RunConfig) and config.data.reset_at_document)  # fmt: skip
    check_plan(plan, config.model.seq_len)
    model, tokenizer = load_model(found.folder)
    rows = open_data(path, options.split, options.field, tokenizer)
    score = evaluate(model.to(_dtype(options.dtype)), tokenizer, rows, plan, runtime)
    return {"data": str(path), **({"split": options.split} if path.is_dir() else {}), **asdict(score)}


def _harness(found: "Found", runtime: Any, options: Namespace) -> dict[str, Any]:
    from dgpt.generate import load_model

    try:
        from dgpt.harness import HarnessModel, run
    except ModuleNotFoundError as error:
        raise UserError(f"--lm-eval = '{options.lm_eval[0]}': {error}", rule="harness tasks need lm-evaluation-harness",
                        fix="pip install 'dgpt[eval]'") from None  # fmt: skip
    model, tokenizer = load_model(found.folder)
    harness_model = HarnessModel(model.to(_dtype(options.dtype)), tokenizer, runtime, batch_size=options.batch_size)
    results = run(harness_model, options.lm_eval, include_path=options.include_path, num_fewshot=options.num_fewshot,
                  limit=options.limit)  # fmt: skip
    return {"tasks": results}


def _dtype(name: str) -> "torch.dtype":
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def _show(facts: dict[str, Any]) -> None:
    """A table for people; one for each task of the harness."""
    from dgpt.tables import print_table

    tasks = facts.pop("tasks", {})
    rows = [(name, _text_of(value)) for name, value in facts.items() if not isinstance(value, (list, dict))]
    rows += [(f"{task}: {name}", _text_of(value)) for task, values in tasks.items() for name, value in values.items()]
    print_table(("measure", "value"), rows, right=0)


def _text_of(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
