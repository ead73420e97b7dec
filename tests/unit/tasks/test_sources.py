"""Which rows a measure is taken on."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from dgpt.config import FinetuneConfig, TaskDataConfig, parse_settings
from dgpt.errors import UserError
from dgpt.finetune_setup import FinetuneSetup, check
from dgpt.runtime import identify
from dgpt.tasks.rows import read_dataset
from dgpt.tasks.sources import draw, read_splits

SORTED = [{"text": f"ba {n}", "label": "left" if n < 60 else "right"} for n in range(120)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files that are sorted by class."""
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, SORTED)))
    return tmp_path


def set_up(folder: Path, base: Path, **settings: Any) -> FinetuneSetup:
    values = {"base": str(base), "run_dir": str(folder / "run"), **settings,
              "data": {"path": str(folder), **settings.get("data", {})}}  # fmt: skip
    return check(parse_settings(FinetuneConfig, values, "the tests"), identify())


def test_the_held_out_rows_of_a_sorted_file_are_of_all_classes(data: Path, random_run: Path) -> None:
    def golds(seed: int) -> list[Any]:
        settings = {"task": {"kind": "classification"}, "training": {"eval_samples": 20}, "seed": seed}
        return list(set_up(data, random_run, **settings).held_out.golds)

    assert len(golds(1)) == 20
    assert 5 < golds(1).count((0,)) < 15
    assert golds(1) == golds(1) != golds(2)


def test_the_answered_rows_of_a_sorted_file_are_of_all_classes(data: Path, random_run: Path) -> None:
    fields = {"fields": {"prompt": "text", "completion": "label"}}
    held_out = set_up(data, random_run, data={**fields, "packing": False}, training={"eval_generations": 20}).held_out
    assert 5 < list(held_out.golds).count("left") < 15


def test_some_examples_of_a_sorted_file_are_of_all_classes(data: Path) -> None:
    splits = read_splits(TaskDataConfig(path=str(data), max_examples=40), seed=1)
    assert [len(splits.train), len(splits.validation)] == [40, 40]
    assert 10 < sum(row.values["label"] == "left" for row in splits.train) < 30


def test_rows_are_drawn_from_all_and_keep_their_order() -> None:
    drawn = draw(iter(range(1000)), 100, seed=3)
    assert drawn == sorted(set(drawn)) == draw(range(1000), 100, seed=3)
    assert 450 < sum(drawn) / len(drawn) < 550
    assert draw(range(5), 9, seed=3) == draw(range(5), None, seed=3) == list(range(5))


def test_numbers_of_classes_become_names_and_minus_one_is_no_class(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = datasets.ClassLabel(names=["left", "right"])
    features = datasets.Features({"label": kind, "labels": datasets.Sequence(kind), "text": datasets.Value("string")})
    values = {"label": [1, -1, None], "labels": [[0, 1], [], None], "text": ["ba"] * 3}
    loaded = datasets.Dataset.from_dict(values, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)
    rows = list(read_dataset("x", "", "train"))
    assert [row.values["label"] for row in rows] == ["right", None, None]
    assert [row.values["labels"] for row in rows] == [["left", "right"], [], None]
    with pytest.raises(UserError, match="dataset 'x', split 'train', row 1: field 'label' is null, or a number"):
        rows[1].get("label", "label")
