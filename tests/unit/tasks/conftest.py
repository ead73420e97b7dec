"""The pieces of a fine-tuning of `random_run`, without the run around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpt.checkpoint.compatible import read_config
from dgpt.checkpoint.find import open_checkpoint
from dgpt.config import FinetuneConfig, parse_settings
from dgpt.data.tokenizer import Tokenizer, load_tokenizer
from dgpt.tasks.base import Task
from dgpt.tasks.registry import task_of

MakeTask = Callable[..., Task]


@pytest.fixture(scope="session")
def tokenizer(random_run: Path) -> Tokenizer:
    return load_tokenizer(random_run / "tokenizer")


@pytest.fixture(scope="session")
def make_task(random_run: Path, tokenizer: Tokenizer) -> MakeTask:
    """make_task(kind, data={...}, **settings of task): the task on the model of random_run, 96 tokens long."""
    model = read_config(open_checkpoint(random_run)).model.model_dump(mode="json")

    def make(kind: str, data: dict[str, Any] | None = None, **task: Any) -> Task:
        values = {"base": str(random_run), "model": model, "data": data or {}, "task": {"kind": kind, **task}}
        return task_of(parse_settings(FinetuneConfig, values, "the tests"), tokenizer)

    return make
