"""The loader gives the samples that the sampling contract names, on any topology, and says so when it cannot."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dgpt.config import BatchPlan, RunConfig
from dgpt.data.loader import Batch, Loader, ValidationLoader
from dgpt.data.shards import TokenData, open_split
from dgpt.errors import UserError

Prepared = tuple[RunConfig, object]
PLANS = [
    BatchPlan(8, 8, 1, 1),
    BatchPlan(8, 1, 8, 1),
    BatchPlan(8, 2, 2, 2),
    BatchPlan(8, 1, 2, 4),
    BatchPlan(8, 4, 1, 2),
]
T = 32


def loader(prepared: Prepared, plan: BatchPlan, dp_rank: int = 0, *, weights: tuple[float, ...] = (3.0, 1.0),
           reset_at_document: bool = False) -> Loader:  # fmt: skip
    data = open_split(prepared[0].data.path, "train", weights=weights)
    return Loader(data, seq_len=T, seed=7, plan=plan, dp_rank=dp_rank, reset_at_document=reset_at_document)


def rows_by_sample(prepared: Prepared, plan: BatchPlan, step: int) -> dict[int, list[int]]:
    """Tokens of every sample of a global step, gathered from all ranks; no sample may come twice."""
    rows: dict[int, list[int]] = {}
    for rank in range(plan.dp_size):
        batches = list(loader(prepared, plan, rank).step(step))
        assert len(batches) == plan.grad_accum_steps
        for batch in batches:
            assert batch.tokens.shape == batch.targets.shape == (plan.micro_batch_size, T)
            assert batch.tokens.dtype == batch.targets.dtype == torch.int64
            assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
            for sample, row in zip(batch.samples, batch.tokens.tolist(), strict=True):
                assert sample not in rows
                rows[sample] = row
    return rows


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_global_step_has_the_same_samples_on_any_topology(prepared: Prepared, plan: BatchPlan) -> None:
    for step in (0, 7, 1000):
        rows = rows_by_sample(prepared, plan, step)
        assert sorted(rows) == list(range(step * 8, step * 8 + 8))
        assert rows == rows_by_sample(prepared, PLANS[0], step)


def test_batches_equal_a_slow_loader(prepared: Prepared) -> None:
    folder = Path(prepared[0].data.path)
    long_rows = [
        np.concatenate([np.fromfile(f, "<u2") for f in sorted((folder / name).glob("train_*.bin"))]) for name in "ab"
    ]
    fast = loader(prepared, PLANS[0])
    for step in range(30):
        (batch,) = fast.step(step)
        source, start = fast.windows.sampler.locate(np.arange(step * 8, step * 8 + 8))
        for row in range(8):
            expected = long_rows[source[row]][start[row] : start[row] + T + 1].tolist()
            assert batch.tokens[row].tolist() + batch.targets[row, -1:].tolist() == expected


def test_steps_may_be_asked_in_any_order(prepared: Prepared) -> None:
    one, other = loader(prepared, PLANS[2]), loader(prepared, PLANS[2])
    ahead = [list(one.step(step)) for step in (900, 3, 4, 0)]
    again = [list(other.step(step)) for step in (0, 4, 3, 900)]
    assert [same(a, b) for a, b in zip(ahead, again[::-1], strict=True)] == [True] * 4


def same(a: list[Batch], b: list[Batch]) -> bool:
    return all(torch.equal(x.tokens, y.tokens) and x.samples == y.samples for x, y in zip(a, b, strict=True))


def test_documents_are_counted_from_the_ends_before_a_token(prepared: Prepared) -> None:
    batches = [b for step in range(20) for b in loader(prepared, PLANS[0], reset_at_document=True).step(step)]
    eod = open_split(prepared[0].data.path, "train").eod_id
    assert any(int(batch.documents.max()) > 0 for batch in batches if batch.documents is not None)
    for batch in batches:
        assert batch.documents is not None
        for tokens, documents in zip(batch.tokens.tolist(), batch.documents.tolist(), strict=True):
            assert documents == [tokens[:t].count(eod) for t in range(T)]
    assert next(loader(prepared, PLANS[0]).step(0)).documents is None


def test_the_fingerprint_is_of_the_data_not_of_the_topology(prepared: Prepared) -> None:
    prints = {loader(prepared, plan, plan.dp_size - 1).fingerprint(5) for plan in PLANS}
    assert len(prints) == 1
    assert loader(prepared, PLANS[0]).fingerprint(6) not in prints
    assert loader(prepared, PLANS[0], weights=(1.0, 1.0)).fingerprint(5) not in prints


def test_position_counts_samples_and_epochs(prepared: Prepared) -> None:
    it = loader(prepared, PLANS[0])
    position = it.position(10)
    assert position.samples == 80
    assert position.epoch == pytest.approx(80 / it.n_samples)
    a, b = it.windows.sampler.n_windows
    assert position.source_epochs == pytest.approx({"a": 60 / a, "b": 20 / b})


def test_too_few_tokens_are_refused(prepared: Prepared) -> None:
    data = open_split(prepared[0].data.path, "train")
    with pytest.raises(UserError, match=r"too few for one batch of training.global_batch_size = 100000"):
        Loader(data, seq_len=T, seed=0, plan=BatchPlan(100_000, 8, 1, 1), dp_rank=0, reset_at_document=False)
    weighted = open_split(prepared[0].data.path, "train", weights=(1, 1))
    short = weighted.sources[1].n_tokens
    with pytest.raises(UserError, match=rf"source 'b' has weight 1 but {short} training tokens"):
        Loader(weighted, seq_len=short, seed=0, plan=BatchPlan(1, 1, 1, 1), dp_rank=0, reset_at_document=False)


def validation(data: TokenData, micro: int, dp_size: int, dp_rank: int, max_samples: int = 10**6) -> ValidationLoader:
    return ValidationLoader(data, seq_len=T, micro_batch_size=micro, dp_rank=dp_rank, dp_size=dp_size,
                            max_samples=max_samples, reset_at_document=False)  # fmt: skip


@pytest.mark.parametrize(("micro", "dp_size"), [(1, 1), (4, 1), (4, 3), (7, 4), (50, 4), (1000, 2)])
def test_validation_sees_each_sample_once_and_keeps_ranks_in_step(prepared: Prepared, micro: int, dp_size: int) -> None:
    data = open_split(prepared[0].data.path, "val")
    ranks = [list(validation(data, micro, dp_size, rank)) for rank in range(dp_size)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    seen = [sample for batch in batches if batch.valid for sample in batch.samples]
    n_windows = sum((source.n_tokens - 1) // T for source in data.sources)
    assert sorted(seen) == list(range(n_windows))
    assert all(batch.valid in (0, len(batch.tokens)) and len(batch.tokens) for batch in batches)
    means = [(batch.tokens.double().mean().item(), batch.valid) for batch in batches]
    mean = sum(m * valid for m, valid in means) / sum(valid for _, valid in means)
    (whole,) = validation(data, n_windows, 1, 0)
    assert mean == pytest.approx(whole.tokens.double().mean().item(), rel=1e-12)


def test_validation_is_the_same_in_every_run_and_covers_both_sources(prepared: Prepared) -> None:
    data = open_split(prepared[0].data.path, "val")
    (few,) = validation(data, 10, 1, 0, max_samples=10)
    (more,) = validation(data, 20, 1, 0, max_samples=20)
    assert torch.equal(few.tokens, more.tokens[:10])
    weighted = open_split(prepared[0].data.path, "val", weights=(1, 9))
    (other,) = validation(weighted, 10, 1, 0, max_samples=10)
    assert torch.equal(few.tokens, other.tokens)


def test_an_empty_validation_split_is_a_state_and_no_error(tmp_path: Path, corpus: object) -> None:
    file = corpus.jsonl(tmp_path / "a.jsonl", corpus.texts(40))  # type: ignore[attr-defined]
    config = corpus.config(tmp_path / "data", [{"path": str(file)}], val_fraction=0.0)  # type: ignore[attr-defined]
    folder = corpus.prepare(config)  # type: ignore[attr-defined]
    empty = validation(open_split(folder, "val"), 4, 2, 1)
    assert (list(empty), len(empty), empty.n_samples) == ([], 0, 0)
    assert "has 0 tokens, fewer than one sample of 33" in empty.why_empty
