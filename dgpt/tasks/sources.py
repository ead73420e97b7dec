"""Where the examples of a fine-tuning come from: rows to learn from, and rows held out."""

import hashlib
import heapq
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dgpt.config import TaskDataConfig
from dgpt.data.blocks import is_held_out
from dgpt.errors import UserError
from dgpt.tasks.rows import Row, read_dataset, read_rows

Item = TypeVar("Item")


@dataclass(frozen=True)
class Splits:
    """The rows of a task, all in memory."""

    train: list[Row]
    validation: list[Row]

    @property
    def hash(self) -> str:
        """Identity of what is learnt from."""
        digest = hashlib.sha256()
        for row in self.train:
            digest.update(_bytes(row) + b"\n")
        return digest.hexdigest()


def read_splits(config: TaskDataConfig, seed: int) -> Splits:
    """Read all rows, and use data.max_examples of them, drawn by `seed`.

    Raises UserError where a file is missing or damaged, or nothing is left to train on.
    """
    train = draw(_train_rows(config), config.max_examples or None, seed)
    held_out = _validation_rows(config)
    if held_out is None:
        validation = [row for row in train if is_held_out(_bytes(row), config.validation_fraction)]
        train = [row for row in train if not is_held_out(_bytes(row), config.validation_fraction)]
    else:
        validation = draw(held_out, config.max_examples or None, seed)
    if not train:
        raise UserError(f"no example to learn from in '{config.dataset or _file(config, 'train')}'",
                        rule="a fine-tuning has one training example or more",
                        fix="give more rows, or lower data.validation_fraction")  # fmt: skip
    return Splits(train, validation)


def _train_rows(config: TaskDataConfig) -> Iterator[Row]:
    if config.dataset:
        return read_dataset(config.dataset, config.dataset_config, config.train_split)
    return read_rows(_file(config, "train"))


def _validation_rows(config: TaskDataConfig) -> Iterator[Row] | None:
    """None if they are to be held out of the training rows."""
    if config.dataset:
        split = config.validation_split
        return read_dataset(config.dataset, config.dataset_config, split) if split else None
    path = _file(config, "validation")
    return read_rows(path) if config.validation or (path.is_file() and not config.train) else None


def _file(config: TaskDataConfig, split: str) -> Path:
    named = config.train if split == "train" else config.validation
    return Path(named) if named else Path(config.path) / f"{split}.jsonl"


def draw(items: Iterable[Item], count: int | None, seed: int) -> list[Item]:
    """At most `count` of the items, in their order: the same ones on every rank, and no more than these in memory.

    Not the first ones, which in a file that is sorted by class are all of one class.
    """
    if count is None:
        return list(items)
    order = random.Random(seed)
    drawn = heapq.nsmallest(count, enumerate(items), key=lambda _: order.random())
    return [item for _, item in sorted(drawn, key=lambda pair: pair[0])]


def _bytes(row: Row) -> bytes:
    return json.dumps(row.values, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
