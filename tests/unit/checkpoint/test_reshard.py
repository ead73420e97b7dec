"""What was saved by any topology is loaded bit for bit by any other."""

import os
import runpy
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn

from dgpt.checkpoint import CheckpointError, find_latest, load, load_weights, read_config
from dgpt.config import RunConfig
from dgpt.fragments import Fragment

TOPOLOGIES = [(1, 1, 1), (1, 2, 1), (1, 4, 1), (3, 4, 1), (0, 2, 1), (1, 1, 2), (1, 2, 2), (3, 2, 2), (0, 1, 4),
              (3, 1, 4), (1, 4, 2), (0, 2, 2)]  # fmt: skip


def blank(state):
    return {key: torch.full_like(tensor, torch.nan) for key, tensor in state.items()}


def load_all(run_dir, target, state):
    """Load into empty ranks of `target`; returns what they hold and what they should hold."""
    found = find_latest(run_dir)
    ranks = target.cut(blank(state))
    for fragments in ranks:
        load(found, fragments, RunConfig())
    return [*chain(*ranks)], [*chain(*target.cut(state))]


@pytest.mark.parametrize("source", TOPOLOGIES, ids=str)
def test_any_topology_loads_into_any_other_bit_for_bit(source, topology, job, state):
    saved = state(seed=1)
    writer = job(topology(*source))
    writer.save(7, saved)
    for target in TOPOLOGIES:
        loaded, expected = load_all(writer.run_dir, topology(*target), saved)
        assert len(loaded) == len(expected)
        for got, want in zip(loaded, expected, strict=True):
            assert torch.equal(got.tensor, want.tensor), (target, got)


@pytest.mark.parametrize("source", TOPOLOGIES, ids=str)
def test_exactly_one_copy_is_written(source, topology, job, state):
    saved = state(seed=2)
    manifest_folder = job(topology(*source)).save(1, saved)
    files = find_latest(manifest_folder.parents[1]).manifest.files
    header_bytes = sum(8 + int.from_bytes((manifest_folder / f.name).read_bytes()[:8], "little") for f in files)
    payload = sum(os.path.getsize(manifest_folder / f.name) for f in files) - header_bytes
    assert payload == sum(tensor.nbytes for tensor in saved.values())
    shares = [f.size for f in files]
    if (
        source[0] == 0
    ):  # replicas share the work: no rank writes more than the others by more than the headers and tails
        assert max(shares) - min(shares) < 1000


def test_the_reader_in_the_documentation_works(topology, job, state, monkeypatch, tmp_path):
    saved = state(seed=3)
    folder = job(topology(3, 2, 2)).save(1, saved)
    text = (Path(__file__).parents[3] / "docs" / "checkpoints.md").read_text()
    (tmp_path / "reader.py").write_text(text.split("```python\n")[1].split("```")[0])
    monkeypatch.setattr(sys, "argv", ["reader.py", str(folder)])
    whole = runpy.run_path(str(tmp_path / "reader.py"))["whole"]
    assert whole.keys() == {(state, name) for name, state in saved}
    assert all(torch.equal(whole[state, name], tensor) for (name, state), tensor in saved.items())


def test_mixed_element_sizes_keep_their_bits(tmp_path, topology, job, state):
    saved = {key: t.to(torch.bfloat16 if key[1] == "exp_avg" else torch.float32) for key, t in state(seed=4).items()}
    job(topology(1, 2, 2)).save(1, saved)
    loaded, expected = load_all(tmp_path, topology(3, 2, 1), saved)
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(loaded, expected, strict=True))


@pytest.mark.parametrize("buffer_bytes", [4, 64, 200])
def test_small_read_buffers_give_the_same_result(buffer_bytes, monkeypatch, tmp_path, topology, job, state):
    saved = state(seed=5)
    job(topology(1, 2, 1)).save(1, saved)
    monkeypatch.setattr(sys.modules["dgpt.checkpoint.load"], "BUFFER_BYTES", buffer_bytes)
    loaded, expected = load_all(tmp_path, topology(3, 1, 4), saved)
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(loaded, expected, strict=True))


def test_rank_without_fragments_takes_part(tmp_path, topology, job, state):
    saved = {("scale", "weight"): torch.tensor(3.0), ("norm.weight", "weight"): torch.randn(13)}
    tiny = {"scale": ((), None), "norm.weight": ((13,), None)}
    few = topology(3, 4, 1, ("weight",), {"scale": ((), None)})
    job(few).save(1, saved)
    job(topology(1, 2, 1, ("weight",), tiny)).save(2, saved)
    found = find_latest(tmp_path)
    load(found, [], RunConfig())
    target = torch.zeros(1)
    load(found, [Fragment("scale", "weight", (), None, 0, 1, 0, target)], RunConfig())
    assert target.item() == 3.0


class Nested(nn.Module):
    def __init__(self, shapes, dtype):
        super().__init__()
        for name, shape in shapes.items():
            module, _, leaf = name.rpartition(".")
            if module and not hasattr(self, module):
                self.add_module(module, nn.Module())
            self.get_submodule(module).register_parameter(leaf, nn.Parameter(torch.zeros(shape, dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_weights_fills_a_plain_module(dtype, tmp_path, topology, job, state):
    saved = state(seed=6)
    folder = job(topology(3, 2, 2)).save(1, saved)
    model = Nested({name: shape for name, (shape, _) in topology(1, 1, 1).shapes.items()}, dtype)
    for path in (folder, tmp_path):
        load_weights(path, model)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, saved[name, "weight"].to(dtype))


def test_load_weights_refuses_a_model_with_other_tensors(topology, job, state):
    folder = job(topology(1, 2, 1)).save(1, state(seed=6))
    shapes = {name: shape for name, (shape, _) in topology(1, 1, 1).shapes.items()}
    with pytest.raises(CheckpointError, match=r"holds 'scale', which this model does not have"):
        load_weights(folder, Nested({k: v for k, v in shapes.items() if k != "scale"}, torch.float32))
    with pytest.raises(CheckpointError, match=r"has no tensor 'extra'"):
        load_weights(folder, Nested({**shapes, "extra": (2,)}, torch.float32))
    with pytest.raises(CheckpointError, match=r"'norm.weight' has shape \(13,\) there, \(14,\) in this run"):
        load_weights(folder, Nested({**shapes, "norm.weight": (14,)}, torch.float32))


def test_missing_state_is_refused_unless_only_weights_are_asked_for(tmp_path, topology, job, state):
    saved = state(seed=7)
    job(topology(1, 2, 1, ("weight",))).save(1, saved)
    found = find_latest(tmp_path)
    fragments = topology(1, 1, 1).cut(blank(saved))[0]
    with pytest.raises(CheckpointError, match=r"has only weight of 'wte.weight', no exp_avg"):
        load(found, fragments, RunConfig())
    assert all(f.tensor.isnan().all() for f in fragments)
    load(found, fragments, RunConfig(), states={"weight"})
    assert all(f.tensor.isnan().any() != (f.state == "weight") for f in fragments)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"n_layer": 13}, r"model\.n_layer = 12 there, 13 in this run"),
        ({"norm_eps": 1e-6}, r"model\.norm_eps = 1e-05 there, 1e-06 in this run"),
        ({"n_kv_head": 6}, r"model\.kv_heads = 12 there, 6 in this run"),
    ],
)
def test_another_model_is_refused_by_its_first_differing_setting(section, message, tmp_path, topology, job, state):
    job(topology(1, 2, 1)).save(1, state(seed=8))
    with pytest.raises(CheckpointError, match=message):
        load(find_latest(tmp_path), [], RunConfig.model_validate({"model": section}))


def test_settings_that_do_not_change_the_model_may_differ(tmp_path, topology, job, state):
    job(topology(1, 2, 1)).save(1, state(seed=8))
    config = RunConfig.model_validate({"model": {"dropout": 0.1, "n_kv_head": 12, "n_ff": 4 * 768}, "seed": 5})
    load(find_latest(tmp_path), [], config)


def test_config_is_kept(tmp_path, topology, job, state):
    job(topology(1, 2, 1)).save(1, state(seed=9))
    assert read_config(find_latest(tmp_path)) == RunConfig()
