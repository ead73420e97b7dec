"""The task that a config names, with what it takes from the training rows: the classes, and how rare each is."""

from collections import Counter
from collections.abc import Sequence

from dgpt.config import FinetuneConfig
from dgpt.data.tokenizer import Tokenizer
from dgpt.errors import UserError
from dgpt.tasks.base import Task
from dgpt.tasks.classification import Classification, names_of
from dgpt.tasks.extractive_qa import ExtractiveQa
from dgpt.tasks.generation import Generation
from dgpt.tasks.generative_qa import GenerativeQa
from dgpt.tasks.rows import Row


def task_of(config: FinetuneConfig, tokenizer: Tokenizer, class_weights: Sequence[float] = ()) -> Task:
    """`config` with model and task.labels filled in."""
    match config.task.kind:
        case "classification":
            return Classification(config, tokenizer, class_weights)
        case "extractive_qa":
            return ExtractiveQa(config, tokenizer)
        case "generative_qa":
            return GenerativeQa(config, tokenizer)
        case "generation":
            return Generation(config, tokenizer)


def find_labels(config: FinetuneConfig, rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the classes: as set, or else of the training rows, sorted. Raises UserError for fewer than they are."""
    if config.task.kind != "classification" or config.task.labels:
        return config.task.labels
    labels = {name for row in rows for name in names_of(row, config)}
    if len(labels) < 2 - config.task.multi_label:
        raise UserError(f"the training examples have {len(labels)} classes: {', '.join(labels)}",
                        rule="a classification has two classes or more",
                        fix="give examples of other classes, or name them in task.labels")  # fmt: skip
    return tuple(sorted(labels, key=lambda name: (not name.lstrip("-").isdecimal(), _as_number(name), name)))


def holds_conversations(config: FinetuneConfig, rows: Sequence[Row]) -> bool:
    """Whether a model for generation learns the chat template, and so is to be asked in it."""
    messages = config.data.fields.messages
    return config.task.chat or (config.task.kind == "generation" and any(row.has(messages) for row in rows))


def balanced_weights(config: FinetuneConfig, rows: Sequence[Row]) -> tuple[float, ...]:
    """A weight for each class, 1 / (its share * number of classes); a class without examples has the weight 1."""
    if config.task.class_weights == "none":
        return ()
    counts = Counter(name for row in rows for name in names_of(row, config))
    n = len(config.task.labels)
    return tuple(len(rows) / (n * counts[name]) if counts[name] else 1.0 for name in config.task.labels)


def _as_number(name: str) -> int:
    """'10' comes after '9'."""
    return int(name) if name.lstrip("-").isdecimal() else 0
