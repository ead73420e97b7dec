"""An evaluation gives the same numbers on any number of processes, for a checkpoint of any topology."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pool import Pool
from runs import Topology, start

from dgpt.evaluate import Plan, evaluate, open_data
from dgpt.generate import load_model
from dgpt.runtime import Runtime


def score(runtime: Runtime, run: Path, data: Path, plan: Plan) -> dict[str, Any]:
    """On each rank of the pool."""
    model, tokenizer = load_model(run)
    rows = open_data(data, "val", "text", tokenizer)
    return asdict(evaluate(model, tokenizer, rows, plan, runtime))


@pytest.fixture(scope="module")
def run(pool: Pool, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained and saved by two ranks that hold half of the model each."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    start(pool, tiny_data, folder, Topology(tp=2), "training.steps=2")
    return folder


@pytest.mark.parametrize("plan", [Plan(16, 16, 4), Plan(16, 5, 7, limit=61), Plan(16, 16, 4, limit=1)])
def test_one_and_two_processes_give_equal_numbers(pool: Pool, tiny_data: Path, run: Path, plan: Plan) -> None:
    (one,) = pool.run(score, 1, run=run, data=tiny_data, plan=plan)
    assert pool.run(score, 2, run=run, data=tiny_data, plan=plan) == [one, one]
    assert one["tokens"] > one["windows"]
