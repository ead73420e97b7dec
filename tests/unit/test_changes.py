"""What may differ between a run and its checkpoint: refused, warned of, or said."""

from pathlib import Path

import pytest

from dgpt.changes import check_same_data, report
from dgpt.checkpoint import Found, Manifest, MeshEntry, Meta
from dgpt.config import RunConfig, flat, load_config
from dgpt.errors import UserError

MESH = MeshEntry(world_size=1, dp_size=1, tp=1, zero_stage=1)


def found_of(config: RunConfig) -> Found:
    meta = Meta(tokens=0, samples=0, loss=None, data_hash="d" * 64, tokenizer_hash="t" * 64,
                config=config.model_dump(mode="json"))  # fmt: skip
    manifest = Manifest.model_construct(step=7, meta=meta, mesh=MESH)
    return Found(Path("runs/a/checkpoints/step_00000007"), manifest)


@pytest.mark.parametrize(
    ("override", "data", "tokenizer", "message"),
    [
        ("seed=2", "d", "t", "seed = 2 now, 1337 in the checkpoint"),
        ("training.global_batch_size=128", "d", "t", "training.global_batch_size = 128 now, 64 in the checkpoint"),
        ("data.reset_at_document=true", "d", "t", "data.reset_at_document = True now, False"),
        ("data.sources=[{builtin='stdlib',weight=2.0}]", "d", "t", "data.sources.0.weight = 2.0 now, 0.0"),
        ("seed=1337", "e", "t", "holds data (eeeeeeeeeeee) other than that of the checkpoint"),
        ("seed=1337", "d", "u", "holds a tokenizer (uuuuuuuuuuuu) other than that of the checkpoint"),
    ],
)
def test_other_samples_are_refused_unless_allowed(override: str, data: str, tokenizer: str, message: str) -> None:
    found, hashes = found_of(load_config(None)), (data * 64, tokenizer * 64)
    with pytest.raises(UserError) as caught:
        check_same_data(found, load_config(None, [override]), *hashes)
    assert message in str(caught.value)
    assert "or start a new run_dir; resume.allow_data_change=true goes on nevertheless" in str(caught.value)
    allowed = load_config(None, [override, "resume.allow_data_change=true"])
    check_same_data(found, allowed, *hashes)
    first = next(report(found, allowed, *hashes))
    assert first.startswith("WARNING, other samples from here on (resume.allow_data_change): ")
    assert message in first


def test_what_bends_the_curve_is_warned_of_and_the_rest_is_said() -> None:
    now = load_config(None, ["parallel.tp=2", "optimizer.lr=1e-3", "model.dropout=0.1", "run_dir=elsewhere"])
    assert list(report(found_of(load_config(None)), now, "d" * 64, "t" * 64)) == [
        "WARNING, this bends the curve: model.dropout = 0.0 -> 0.1",
        "WARNING, this bends the curve: optimizer.lr = 0.0006 -> 0.001",
        "changed since the checkpoint: parallel.tp = 1 -> 2",
    ]


def test_flat_names_every_leaf() -> None:
    assert flat({"a": 1, "b": {"c": [2, {"d": 3}], "e": {}}}) == {"a": 1, "b.c.0": 2, "b.c.1.d": 3}
