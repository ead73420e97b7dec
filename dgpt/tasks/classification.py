"""Classification: one class, or any number of them, for a text or a pair of texts.

B batch, T tokens of the longest sample, L classes
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dgpt.config import FinetuneConfig
from dgpt.data.tokenizer import Tokenizer
from dgpt.model.gpt import GPT
from dgpt.model.heads import Classifier
from dgpt.tasks.base import Answer, Example, Ids, Inputs, Scores, Task, in_batches
from dgpt.tasks.pictures import confusion_matrix
from dgpt.tasks.rows import Row


@dataclass(frozen=True)
class ClassExample(Example):
    classes: tuple[int, ...]


class Classification(Task):
    """Rows are {text, label}, or with multi_label {text, labels: [...]}; a second text may stand in text_pair."""

    def __init__(self, config: FinetuneConfig, tokenizer: Tokenizer, class_weights: Sequence[float] = ()) -> None:
        """`config` with task.labels filled in."""
        super().__init__(config, tokenizer)
        self.labels = {name: number for number, name in enumerate(self.settings.labels)}
        self.class_weights = tuple(class_weights)

    def examples(self, row: Row) -> list[Example]:
        ids, classes = self._ids(row), self.gold(row)
        if len(ids) > self.max_tokens and self.too_long(row, len(ids)):
            return []
        mass = self.class_weights[classes[0]] if self.class_weights else 1.0
        return [ClassExample(ids[: self.max_tokens], mass, classes)]

    def model(self, gpt: GPT) -> GPT:
        return Classifier(gpt, len(self.labels), multi_label=self.settings.multi_label,
                          class_weights=self.class_weights)  # fmt: skip

    def inputs(self, samples: Sequence[Sequence[Example]]) -> Inputs:
        """tokens, ends and labels of dgpt.model.heads.Classifier."""
        examples = [e for sample in samples for e in sample if isinstance(e, ClassExample)]
        if not self.settings.multi_label:
            labels = torch.tensor([e.classes[0] for e in examples])
        else:
            labels = torch.zeros(len(examples), len(self.labels))
            for b, example in enumerate(examples):
                labels[b, list(example.classes)] = 1.0
        return *self._inputs([e.ids for e in examples]), labels

    def query(self, row: Row) -> Ids:
        ids = self._ids(row)
        self.cut += len(ids) > self.max_tokens
        return ids[: self.max_tokens]

    def gold(self, row: Row) -> tuple[int, ...]:
        """Numbers of the classes. Raises UserError for one that is not known."""
        return tuple(self._number(row, name) for name in names_of(row, self.config))

    def answers(self, model: GPT, queries: Sequence[Ids], batch_size: int) -> Iterator[Answer]:
        """The class, or with multi_label the classes, and the probability of each class."""
        device = model.wte.weight.device
        for batch in in_batches(queries, batch_size):
            logits = model(*(x.to(device) for x in self._inputs(batch)))  # (B, L)
            p = logits.sigmoid() if self.settings.multi_label else logits.softmax(dim=-1)
            yield from map(self._answer, p.cpu().numpy())

    def _answer(self, p: NDArray[np.float32]) -> Answer:
        scores = {name: round(float(p[number]), 6) for name, number in self.labels.items()}
        if self.settings.multi_label:
            return {"labels": [n for n, x in scores.items() if x >= self.settings.label_threshold], "scores": scores}
        return {"label": self.settings.labels[int(p.argmax())], "scores": scores}

    def scores(self, golds: Sequence[tuple[int, ...]], answers: Sequence[Answer]) -> Scores:
        """With multi_label accuracy is the share of rows whose classes are all right and complete.

        macro_f1 as scikit-learn has it: without multi_label the mean over the classes that rows or answers hold.
        """
        from sklearn.metrics import accuracy_score, f1_score

        truth, predicted = self.table(golds, answers)
        macro = f1_score(truth, predicted, average="macro", zero_division=0)
        return {"accuracy": float(accuracy_score(truth, predicted)), "macro_f1": float(macro)}

    def picture(self, golds: Sequence[tuple[int, ...]], answers: Sequence[Answer]) -> NDArray[np.uint8] | None:
        """The confusion matrix; none with multi_label."""
        if self.settings.multi_label:
            return None
        return confusion_matrix(*self.table(golds, answers), self.settings.labels)

    def table(self, golds: Sequence[tuple[int, ...]], answers: Sequence[Answer]) -> tuple[NDArray[Any], NDArray[Any]]:
        """True and predicted class numbers, (N,); with multi_label as tables of 0 and 1, (N, L)."""
        if not self.settings.multi_label:
            return np.array([g[0] for g in golds]), np.array([self.labels[a["label"]] for a in answers])
        predicted = [[self.labels[name] for name in answer["labels"]] for answer in answers]
        out = np.zeros((2, len(golds), len(self.labels)), np.int64)
        for n, pair in enumerate(zip(golds, predicted, strict=True)):
            for side, classes in enumerate(pair):
                out[side, n, list(classes)] = 1
        return out[0], out[1]

    def _ids(self, row: Row) -> Ids:
        """The text; a second one follows after an end-of-document token."""
        ids = self.tokenizer.encode(row.text(self.fields.text, "text"))
        if row.has(self.fields.text_pair):
            ids += [self.tokenizer.eod_id, *self.tokenizer.encode(row.text(self.fields.text_pair, "text_pair"))]
        return np.array(ids, np.int32)

    def _inputs(self, rows: Sequence[Ids]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.padded(rows), torch.tensor([len(ids) - 1 for ids in rows])

    def _number(self, row: Row, name: str) -> int:
        if name not in self.labels:
            close = difflib.get_close_matches(name, self.labels, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise row.refuse(f"label '{name}' is not known", f"the classes are {_listed(self.settings.labels)}",
                             f"correct it{hint}, or name it in task.labels")  # fmt: skip
        return self.labels[name]


def names_of(row: Row, config: FinetuneConfig) -> tuple[str, ...]:
    """Names of the classes of a row. Raises UserError if there is none to be read."""
    fields = config.data.fields
    if not config.task.multi_label:
        return (_name(row, row.get(fields.label, "label"), fields.label),)
    names = row.nested(fields.labels, "labels")
    if not isinstance(names, list):
        raise row.refuse(f"field '{fields.labels}' holds {names!r}", "with task.multi_label it is a list of classes",
                         "write a list, which may be empty")  # fmt: skip
    return tuple(dict.fromkeys(_name(row, name, fields.labels) for name in names))


def _name(row: Row, value: object, field: str) -> str:
    """Classes are named by text; numbers and true and false stand for their text."""
    if isinstance(value, str | int) and str(value).strip():
        row.check_unicode(field, str(value))
        return str(value)
    raise row.refuse(f"field '{field}' holds {value!r}", "a class is named by text or a whole number", "name a class")


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
