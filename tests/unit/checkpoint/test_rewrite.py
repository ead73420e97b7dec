"""Weights alone, written anew: the bits of one checkpoint, or the mean of several; whole, or nothing."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from dgpt.checkpoint import CheckpointError, files, open_checkpoint, rewrite, verify
from dgpt.checkpoint.diff import diff
from dgpt.config import RunConfig
from dgpt.errors import UserError


@pytest.fixture
def save(tmp_path, job, topology):
    """save(step, state, topology, ...): a checkpoint of a run, opened."""

    def saved(step, state, shape=(1, 2, 1), run="run", meta=None, **changes):
        folder = job(topology(*shape, **changes), run_dir=tmp_path / run).save(step, state, **meta or {})
        return open_checkpoint(folder)

    return saved


def weights(folder):
    """Every weight, read with the safetensors library alone."""
    found = {}
    for path in sorted(folder.glob("rank_*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {key.split("/")[1]: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("shape", [(1, 2, 1), (3, 2, 2), (0, 1, 4)], ids=str)
def test_an_export_holds_the_weights_bit_for_bit(shape, save, state, tmp_path):
    saved = state(seed=1)
    saved["scale", "weight"] = torch.tensor(float("nan"))
    source, output = save(7, saved, shape), tmp_path / "out"
    written = rewrite.export(source, output, torch.float32, {"config.toml": b"x = 1\n", "tokenizer/model": b"\0"})
    found = open_checkpoint(output)
    assert found.manifest.model_dump() == written.model_dump()
    assert (found.manifest.meta, found.manifest.step) == (source.manifest.meta, 7)
    assert verify(output) == []
    assert all(entry.distance.equal for entry in diff(found, source).compared)
    assert diff(found, source).unmatched == [f"only in b: exp_avg{s} of 7 tensors" for s in ("", "_sq")]
    stored = weights(output)
    assert len(stored) == 7
    for name, tensor in stored.items():
        assert torch.equal(tensor.view(torch.int32), saved[name, "weight"].flatten().view(torch.int32))
    assert (output / "config.toml").read_bytes() + (output / "tokenizer" / "model").read_bytes() == b"x = 1\n\0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_bf16_rounds_to_nearest_and_halves_the_bytes(save, state, tmp_path):
    saved = state(seed=2)
    rewrite.export(save(1, saved), tmp_path / "out", torch.bfloat16, {})
    stored = weights(tmp_path / "out")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    for name, tensor in stored.items():
        assert torch.equal(tensor, saved[name, "weight"].flatten().bfloat16())


def test_large_models_become_several_files(save, state, tmp_path, monkeypatch):
    monkeypatch.setattr("dgpt.checkpoint.weights.FILE_BYTES", 500)
    source = save(1, state(seed=3))
    manifest = rewrite.export(source, tmp_path / "out", torch.float32, {})
    payload = [4 * sum(file.fragments.numel) for file in manifest.files]
    assert len(payload) == 4
    assert max(payload) == 4 * 240  # a parameter that is larger than a file may be has one of its own
    assert sorted(payload)[-2] <= 500
    assert verify(tmp_path / "out") == []
    assert all(entry.distance.equal for entry in diff(open_checkpoint(tmp_path / "out"), source).compared)


def test_the_mean_is_that_of_fp64_and_the_settings_are_the_newest(save, state, tmp_path):
    states = [state(seed=seed) for seed in (1, 2, 3)]
    shapes = [(1, 2, 1), (3, 2, 2), (1, 1, 2)]
    sources = [save(step, s, shape, run=f"run{step}", meta={"tokens": 10 * step})
               for step, s, shape in zip((1, 9, 4), states, shapes, strict=True)]  # fmt: skip
    manifest = rewrite.average(sources, tmp_path / "mean", {})
    assert (manifest.step, manifest.meta.tokens) == (9, 90)
    stored = weights(tmp_path / "mean")
    for name, tensor in stored.items():
        mean = torch.stack([s[name, "weight"].double() for s in states]).sum(0) / 3
        assert torch.equal(tensor, mean.float().flatten())
    assert set(manifest.states) == {"weight"}


def test_sums_that_fp32_would_lose_are_kept(save, state, tmp_path):
    one = state(seed=1)
    large, small = ({key: torch.full_like(t, value) for key, t in one.items()} for value in (2.0**30, 1.0))
    negative = {key: -tensor for key, tensor in large.items()}
    sources = [save(step, s, run=f"run{step}") for step, s in enumerate((large, small, small, negative))]
    rewrite.average(sources, tmp_path / "mean", {})
    assert all((tensor == 0.5).all() for tensor in weights(tmp_path / "mean").values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"meta": {"config": RunConfig.model_validate({"model": {"n_layer": 13}}).model_dump(mode="json")}},
         r"differ in model\.n_layer = 12 and 13"),
        ({"meta": {"tokenizer_hash": "u" * 64}}, "differ in their tokenizers"),
        ({"shapes": {"scale": ((), None)}}, r"differ in tensors such as norm\.weight"),
        ({"states": ("exp_avg",)}, "holds no weight of"),
    ],
)  # fmt: skip
def test_what_cannot_be_averaged_is_refused(change, reason, save, state, tmp_path):
    sources = [save(1, state(seed=1)), save(2, state(seed=1), run="other", **change)]
    with pytest.raises(UserError, match=reason):
        rewrite.average(sources, tmp_path / "mean", {})
    assert not (tmp_path / "mean").exists()


def test_an_existing_folder_and_a_false_name_are_refused(save, state, tmp_path):
    source = save(1, state(seed=1))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"out' exists already"):
        rewrite.export(source, tmp_path / "out", torch.float32, {})
    with pytest.raises(UserError, match=r"step_00000002' would hold step 1"):
        rewrite.export(source, tmp_path / "step_00000002", torch.float32, {})
    rewrite.export(source, tmp_path / "step_00000001", torch.float32, {})
    assert verify(tmp_path / "step_00000001") == []


def test_damage_is_not_handed_on(save, state, tmp_path):
    source = save(1, state(seed=1))
    path = source.folder / "rank_00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank_00000.safetensors: expected sha256"):
        rewrite.export(source, tmp_path / "out", torch.float32, {})
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_leaves_nothing(save, state, tmp_path, monkeypatch):
    source, write = save(1, state(seed=1)), files.write_hashed

    def full(path: Path, chunks):
        if path.name == "manifest.json":
            raise OSError(28, "No space left on device")
        return write(path, chunks)

    monkeypatch.setattr("dgpt.checkpoint.files.write_hashed", full)
    with pytest.raises(UserError, match=r"out' cannot be written: No space left on device"):
        rewrite.export(source, tmp_path / "out", torch.float32, {"config.toml": b""})
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3))
    with pytest.raises(UserError, match=r"cannot be written: 2,020 bytes are needed and 3 are free"):
        rewrite.export(source, tmp_path / "out", torch.float32, {})
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
