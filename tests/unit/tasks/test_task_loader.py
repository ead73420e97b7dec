"""Which examples a step sees, and what it learns from them, whatever the ranks and micro batches."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dgpt.config import BatchPlan
from dgpt.errors import UserError
from dgpt.model.init import build_model
from dgpt.tasks.base import Task
from dgpt.tasks.loader import TaskLoader, held_out_batches
from dgpt.tasks.rows import Row

MakeTask = Callable[..., Task]
N, G = 37, 8


@pytest.fixture(scope="module")
def task(make_task: MakeTask) -> Task:
    return make_task("generation")


@pytest.fixture(scope="module")
def samples(task: Task) -> list[Any]:
    rng = random.Random(0)
    rows = [Row(str(n), {"prompt": f"{n} " + "ba " * rng.randint(1, 9), "completion": "fe " * rng.randint(1, 9)})
            for n in range(N)]  # fmt: skip
    return [task.examples(row) for row in rows]


def loader(task: Task, samples: list[Any], micro: int, dp: int, rank: int, seed: int = 3) -> TaskLoader:
    return TaskLoader(task, samples, seed=seed, plan=BatchPlan(G, micro, G // micro // dp, dp), dp_rank=rank)


def test_a_pass_has_every_example_once_and_each_pass_another_order(task: Task, samples: list[Any]) -> None:
    one = loader(task, samples, G, 1, 0)
    seen = [i for step in range(-(-3 * N // G)) for i in one._of(step)[1].tolist()]
    passes = [seen[N * p : N * (p + 1)] for p in range(3)]
    assert all(sorted(one_pass) == list(range(N)) for one_pass in passes)
    assert len({tuple(one_pass) for one_pass in passes}) == 3
    assert loader(task, samples, G, 1, 0, seed=4)._of(0)[1].tolist() != one._of(0)[1].tolist()


@pytest.mark.parametrize(("micro", "dp"), [(8, 1), (2, 1), (4, 2), (1, 2), (2, 4)])
def test_a_step_is_the_mean_over_all_answer_tokens_of_its_samples(
    task: Task,
    samples: list[Any],
    micro: int,
    dp: int,
) -> None:
    """Also where micro batches hold answers of different lengths: a mean of means would be another number."""
    model = build_model(task.config.model, 3, torch.device("cpu"))
    for step in (0, 5):
        ranks = [loader(task, samples, micro, dp, rank) for rank in range(dp)]
        batches = [batch for rank in ranks for batch in rank.step(step)]
        assert sorted(i for batch in batches for i in batch.samples) == list(range(step * G, (step + 1) * G))
        assert len({rank.fingerprint(step) for rank in ranks}) == 1
        with torch.no_grad():
            shares = [batch.inputs[0] * model(*batch.inputs[1:]) for batch in batches]
            whole = model(*task.inputs([samples[i] for i in ranks[0]._of(step)[1]]))
        assert float(torch.stack(shares).mean()) == pytest.approx(float(whole), abs=1e-5)


@pytest.mark.parametrize("dp", [1, 2, 3])
def test_held_out_batches_are_as_many_on_every_rank_and_mean_all_samples(
    task: Task, samples: list[Any], dp: int
) -> None:
    model = build_model(task.config.model, 3, torch.device("cpu"))
    ranks = [list(held_out_batches(task, samples[:13], 2, rank, dp)) for rank in range(dp)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    assert sorted(i for batch in batches for i in batch.samples) == list(range(13))
    with torch.no_grad():
        total = sum(float(model(*batch.inputs[1:])) * batch.valid for batch in batches)
        expected = float(model(*task.inputs(samples[:13])))
    assert total / sum(batch.valid for batch in batches) == pytest.approx(expected, abs=1e-5)


def test_fewer_samples_than_a_batch_are_refused(task: Task, samples: list[Any]) -> None:
    with pytest.raises(UserError, match="5 training samples are fewer than"):
        loader(task, samples[:5], G, 1, 0)
