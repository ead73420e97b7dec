"""Examples for each task of `dgpt finetune`, made from the Python standard library of this machine; no network.

The same Python gives the same files. Validation has whole modules of its own, and no text that training has too.
"""

import itertools
import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from dgpt.data.demo_tasks.example import HELD_OUT, Example, held_out, number_of
from dgpt.data.demo_tasks.questions import questions
from dgpt.data.demo_tasks.summaries import conversations, prompts
from dgpt.data.demo_tasks.tokens import next_tokens
from dgpt.errors import UserError

FILES = ("train.jsonl", "validation.jsonl")
KINDS: Mapping[str, Callable[[], Iterable[Example]]] = {
    "generation": prompts,  # what a function does, from its signature
    "chat": conversations,  # the same as messages
    "classification": next_tokens,  # which kind of token comes next
    "extractive_qa": questions,  # on a function, answered by a piece of its source
}


def provide_demo(kind: str, folder: str | Path) -> None:
    """Write the files of `write_demo` where they are not there yet."""
    if not all(Path(folder, name).is_file() for name in FILES):
        print(f"making the demo examples for {kind} in {folder}", flush=True)
        write_demo(kind, folder)


def write_demo(kind: str, folder: str | Path) -> None:
    """Write train.jsonl and validation.jsonl of a kind of KINDS. Each is put in place whole."""
    if kind not in KINDS:
        raise UserError(f"there are no demo examples of kind '{kind}'", rule=f"kinds are {', '.join(KINDS)}",
                        fix="choose one of them")  # fmt: skip
    parts = split(KINDS[kind]())
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, examples in zip(FILES, parts, strict=True):
        _write(Path(folder, name), examples)


def split(examples: Iterable[Example]) -> tuple[list[Example], list[Example]]:
    """Training and validation, each in a fixed order without order: of equal texts one, of each group its limit."""
    ordered = sorted(examples, key=lambda example: number_of(f"{example.module} {example.text}"))
    different = list({example.text: example for example in ordered}.values())
    outside = held_out(example.module for example in different)
    train = [example for example in different if example.module not in outside]
    validation = [example for example in different if example.module in outside]
    return _limited(train, 1 - HELD_OUT), _limited(validation, HELD_OUT)


def _limited(examples: list[Example], share: float) -> list[Example]:
    seen: dict[str, itertools.count[int]] = {}
    numbers = [next(seen.setdefault(example.group, itertools.count())) for example in examples]
    return [e for e, number in zip(examples, numbers, strict=True) if number < round(e.limit * share)]


def _write(path: Path, examples: list[Example]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    lines = (json.dumps(example.row, ensure_ascii=False) + "\n" for example in examples)
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(path)
