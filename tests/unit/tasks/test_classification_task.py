"""Classes by name, one or several of them, weighed or not; scores and pictures against scikit-learn and torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score

from dgpt.data.tokenizer import Tokenizer
from dgpt.errors import UserError
from dgpt.model.init import build_model
from dgpt.tasks.base import Task
from dgpt.tasks.classification import Classification
from dgpt.tasks.registry import balanced_weights, find_labels
from dgpt.tasks.rows import Row

MakeTask = Callable[..., Task]
LABELS = ("bad", "good", "odd")
TEXTS = ["ba fe", "gio", "kouren la_x ni12 ba", "fe"]


def row(**values: Any) -> Row:
    return Row("file 'x.jsonl', line 7", values)


def test_classes_come_from_the_rows_in_a_fixed_order(make_task: MakeTask) -> None:
    config = make_task("classification", labels=()).config
    assert find_labels(config, [row(label=name) for name in ("odd", "bad", "good", "bad")]) == LABELS
    assert find_labels(config, [row(label=number) for number in (10, 9, -1, 9)]) == ("-1", "9", "10")
    with pytest.raises(UserError, match="the training examples have 1 classes: bad"):
        find_labels(config, [row(label="bad")])


def test_a_pair_of_texts_is_joined_by_the_end_of_document(make_task: MakeTask, tokenizer: Tokenizer) -> None:
    task = make_task("classification", labels=LABELS)
    ids = task.query(row(text="ba fe", text_pair="gio")).tolist()
    assert ids == [*tokenizer.encode("ba fe"), tokenizer.eod_id, *tokenizer.encode("gio")]


@pytest.mark.parametrize("multi_label", [False, True])
def test_logits_are_those_of_the_last_token_whatever_the_padding(make_task: MakeTask, multi_label: bool) -> None:
    """The loss of a batch is torch's own on the logits of each text alone."""
    task = make_task("classification", labels=LABELS, multi_label=multi_label)
    model = task.model(build_model(task.config.model, 3, torch.device("cpu")))
    torch.nn.init.normal_(model.task_head.weight, generator=torch.Generator().manual_seed(0))
    rows = [row(text=t, label=LABELS[n % 3], labels=list(LABELS[: n % 3])) for n, t in enumerate(TEXTS)]
    loss = model(*task.inputs([task.examples(r) for r in rows]))
    hidden = [model.hidden(torch.tensor(task.query(r))[None].long())[0, -1] for r in rows]
    logits = torch.stack(hidden) @ model.task_head.weight.T
    if multi_label:
        truth = torch.tensor([[float(name in LABELS[: n % 3]) for name in LABELS] for n in range(4)])
        expected = F.binary_cross_entropy_with_logits(logits, truth)
    else:
        expected = F.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_balanced_weights_make_each_class_count_the_same(make_task: MakeTask, tokenizer: Tokenizer) -> None:
    config = make_task("classification", labels=LABELS, class_weights="balanced").config
    rows = [row(text="ba", label=name) for name in ("bad", "bad", "bad", "good", "good", "odd")]
    weights = balanced_weights(config, rows)
    assert weights == pytest.approx((2 / 3, 1.0, 2.0))
    task = Classification(config, tokenizer, weights)
    masses = {name: sum(e.mass for r in rows if r.values["label"] == name for e in task.examples(r)) for name in LABELS}
    assert list(masses.values()) == pytest.approx([2.0] * 3)


def test_scores_are_those_of_scikit_learn(make_task: MakeTask) -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(3, size=50), rng.integers(2, size=50)
    task = make_task("classification", labels=LABELS)
    scores = task.scores([(t,) for t in truth.tolist()], [{"label": LABELS[p]} for p in predicted])
    assert scores == pytest.approx({"accuracy": accuracy_score(truth, predicted),
                                    "macro_f1": f1_score(truth, predicted, average="macro")})  # fmt: skip


def test_the_confusion_matrix_is_a_picture_with_a_dark_diagonal(make_task: MakeTask) -> None:
    task = make_task("classification", labels=("$a_1", "b", "c"))
    right = [{"label": name} for name in task.settings.labels for _ in range(5)]
    golds = [(n,) for n in range(3) for _ in range(5)]
    picture, other = task.picture(golds, right), task.picture(golds, right[5:] + right[:5])
    assert picture is not None
    assert other is not None
    assert (picture.dtype, picture.shape[2]) == (np.uint8, 3)
    blue = (np.array([8, 48, 107]) == picture).all(axis=2)  # the darkest of the map: all of a row
    height, width = blue.shape
    assert blue[: height // 2, : width // 2].any()
    assert blue[height // 2 :, width // 2 :].any()
    assert (picture != other).any()


def test_a_class_that_neither_rows_nor_answers_have_counts_in_no_mean(make_task: MakeTask) -> None:
    scores = make_task("classification", labels=LABELS).scores([(0,), (1,)], [{"label": n} for n in LABELS[:2]])
    assert scores == {"accuracy": 1.0, "macro_f1": 1.0}
