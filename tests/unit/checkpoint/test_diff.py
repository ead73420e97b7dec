"""Two checkpoints compared tensor by tensor, against the tensors themselves."""

import math

import pytest
import torch

from dgpt.checkpoint import CheckpointError, open_checkpoint
from dgpt.checkpoint.diff import diff, distance
from dgpt.cli import main
from dgpt.outcome import MISTAKE


@pytest.fixture
def save(tmp_path, job, topology):
    """save(name, state, topology): a checkpoint of step 1 in a run of its own, opened."""

    def saved(name, state, shape=(1, 2, 1), step=1, **changes):
        folder = job(topology(*shape, **changes), run_dir=tmp_path / name).save(step, state)
        return open_checkpoint(folder)

    return saved


@pytest.mark.parametrize("other", [(0, 1, 1), (1, 4, 2), (3, 2, 2), (3, 1, 4)], ids=str)
def test_the_same_state_is_equal_in_any_two_topologies(other, save, state):
    found = diff(save("a", state(seed=1)), save("b", state(seed=1), other, step=2))
    assert found.equal
    assert len(found.compared) == len(state(seed=1))
    assert {entry.distance.relative for entry in found.compared} == {0.0}


def test_numbers_are_those_of_the_tensors(save, state):
    a, b = state(seed=1), state(seed=2)
    for key in (("q.weight", "weight"), ("scale", "exp_avg")):
        b[key] = a[key]
    found = diff(save("a", a, (3, 2, 2)), save("b", b, (1, 1, 2)))
    assert not found.equal
    assert len(found.compared) == len(a)
    for entry in found.compared:
        x, y = (side[entry.name, entry.state].double() for side in (a, b))
        assert entry.distance.equal == torch.equal(x, y)
        assert entry.distance.largest == (x - y).abs().max().item()
        assert entry.distance.relative == pytest.approx(((x - y).norm() / y.norm()).item(), rel=1e-12)
    ranks = [entry.distance.relative for entry in found.compared]
    assert ranks == sorted(ranks, reverse=True)
    for name, entries, total in found.states():
        x, y = (torch.cat([side[e.name, name].flatten().double() for e in entries]) for side in (a, b))
        assert total.relative == pytest.approx(((x - y).norm() / y.norm()).item(), rel=1e-12)
        assert total.largest == (x - y).abs().max().item()


@pytest.mark.parametrize(
    ("a", "b", "equal", "largest", "relative"),
    [
        ([0.0, 1.0], [-0.0, 1.0], False, 0.0, 0.0),
        ([math.nan, 1.0], [math.nan, 1.0], True, 0.0, 0.0),
        ([math.inf, 3.0], [math.inf, 4.0], False, 1.0, 0.0),
        ([math.nan, 1.0], [2.0, 1.0], False, math.nan, math.nan),
        ([1.0], [0.0], False, 1.0, math.inf),
        ([1e300], [-1e300], False, 2e300, math.nan),
    ],
    ids=str,
)
def test_zeros_infinities_and_nans(a, b, equal, largest, relative):
    found = distance(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    assert found.equal == equal
    assert (found.largest, found.relative) == pytest.approx((largest, relative), nan_ok=True)


def test_long_tensors_are_compared_in_chunks(monkeypatch):
    a, b = torch.randn(1000), torch.randn(1000)
    whole = distance(a, b)
    monkeypatch.setattr("dgpt.checkpoint.diff.CHUNK_ELEMENTS", 7)
    parts = distance(a, b)
    assert (parts.largest, parts.equal) == (whole.largest, False)
    assert parts.relative == pytest.approx(whole.relative, rel=1e-12)
    b = a.clone()
    b[500] += 1
    assert not distance(a, b).equal
    assert distance(a, a.clone()).equal


def test_another_dtype_is_never_equal_but_its_values_are_compared(save, state):
    rounded = state(seed=1, dtype=torch.bfloat16)
    found = diff(save("a", rounded), save("b", {key: tensor.float() for key, tensor in rounded.items()}))
    assert not found.equal
    assert {entry.dtypes for entry in found.compared} == {"BF16, F32"}
    assert {(entry.distance.equal, entry.distance.relative) for entry in found.compared} == {(False, 0.0)}


def test_what_only_one_has_is_named(save, state, topology):
    shapes = topology(1, 1, 1).shapes
    other = {**shapes, "odd.weight": ((7, 5), None), "new.bias": ((2,), None)}
    del other["scale"]
    changed = state(seed=1) | {("new.bias", "weight"): torch.ones(2), ("odd.weight", "weight"): torch.ones(7, 5)}
    found = diff(save("a", state(seed=1)), save("b", changed, (1, 1, 1), states=("weight",), shapes=other))
    assert found.unmatched == [
        "only in a: scale",
        "only in b: new.bias",
        "shape of odd.weight: [5, 7] in a, [7, 5] in b",
        "only in a: exp_avg of 5 tensors",
        "only in a: exp_avg_sq of 5 tensors",
    ]
    assert not found.equal
    assert all(entry.distance.equal for entry in found.compared)


def test_damage_is_no_difference(save, state):
    a, b = save("a", state(seed=1)), save("b", state(seed=1))
    path = b.folder / "rank_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank_00001.safetensors: expected sha256"):
        diff(a, b)


def test_the_verb_says_what_differs_and_how_much(save, state, capsys, tmp_path):
    a = state(seed=1)
    b = a | {("q.weight", "weight"): a["q.weight", "weight"] + 1}
    save("a", a, (3, 2, 2))
    save("b", b, step=2)
    runs = [str(tmp_path / name) for name in ("a", "b")]
    assert main(["checkpoint", "diff", *runs]) == 1
    text = capsys.readouterr().out
    assert f"a: {tmp_path}/a/checkpoints/step_00000001  step 1, 5,000 tokens; dp 2 x tp 2, ZeRO 3\n" in text
    assert f"b: {tmp_path}/b/checkpoints/step_00000002  step 2, 5,000 tokens; dp 2 x tp 1, ZeRO 1\n" in text
    assert "weight: 6 of 7 tensors equal; |a-b|/|b| = " in text
    assert "exp_avg: 7 of 7 tensors equal\n" in text
    assert text.count("q.weight") == 1
    assert text.endswith("different\n")
    assert main(["checkpoint", "diff", "--all", *runs]) == 1
    assert capsys.readouterr().out.count("q.weight") == 3
    assert main(["checkpoint", "diff", runs[0], runs[0]]) == 0
    assert capsys.readouterr().out.endswith("equal, bit for bit\n")
    assert main(["checkpoint", "diff", runs[0], str(tmp_path / "none")]) == MISTAKE


def test_many_differences_are_cut_short_and_counted(save, state, capsys, tmp_path):
    save("a", state(seed=1))
    save("b", state(seed=2))
    assert main(["checkpoint", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "\n11 more differ: --all shows every tensor\n" in capsys.readouterr().out
