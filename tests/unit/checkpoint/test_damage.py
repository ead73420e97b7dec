"""What a checkpoint is refused for, in detail. How each fault ends, as a start of the run sees it: test_faults.py."""

import json
import os
import platform
import shutil
from errno import EIO
from hashlib import sha256

import pytest
import torch

from dgpt.checkpoint import CheckpointError, Found, files, find_latest, load, open_checkpoint
from dgpt.checkpoint.read import read_manifest
from dgpt.config import RunConfig
from dgpt.errors import StorageError, UserError


@pytest.fixture
def saved(state):
    return state(seed=1)


@pytest.fixture
def folder(job, topology, saved):
    """Steps 1 and 2 of a run of two ranks; the folder of step 2."""
    both = job(topology(1, 2, 1))
    both.save(1, saved)
    return both.save(2, saved)


def rewrite(folder, change):
    """Change the manifest and give it the right hash again: what a careless or hostile writer could do."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    content = json.dumps(manifest).encode()
    path.write_bytes(content)
    (folder / "manifest.sha256").write_text(f"{sha256(content).hexdigest()}  manifest.json\n")


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def test_no_whole_checkpoint_is_refused_with_every_reason(folder):
    (folder / "manifest.json").unlink()
    truncate(folder.with_name("step_00000001") / "rank_00001.safetensors")
    with pytest.raises(UserError, match=r"none of the 2 checkpoints") as caught:
        find_latest(folder.parents[1])
    text = str(caught.value)
    assert "step_00000002/manifest.json: No such file" in text
    assert "step_00000001/rank_00001.safetensors: expected" in text
    assert "to start anew at step 0, give another run_dir" in text


def test_damaged_checkpoint_that_is_asked_for_by_name_is_refused(folder):
    truncate(folder / "rank_00001.safetensors")
    with pytest.raises(CheckpointError, match=r"step_00000002/rank_00001.safetensors: expected \d+ bytes, found \d+"):
        open_checkpoint(folder)


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert find_latest(tmp_path) is None
    (tmp_path / "checkpoints" / "step_00000005.tmp-a1").mkdir(parents=True)
    assert find_latest(tmp_path) is None
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder"):
        open_checkpoint(tmp_path)


def test_a_disk_that_fails_makes_no_checkpoint_a_damaged_one(folder, monkeypatch):
    """Nor is an older one taken: the newest may be whole."""

    def fail(path):
        raise OSError(EIO, os.strerror(EIO))

    monkeypatch.setattr(files, "open_regular", fail)
    with pytest.raises(StorageError, match=rf"step_00000002/manifest.json' cannot be read on {platform.node()}: Input"):
        find_latest(folder.parents[1])


def test_known_bad_checkpoints_are_skipped_with_their_reason(folder):
    found = find_latest(folder.parents[1], known_bad={folder: f"{folder}: refused by load"})
    assert found.manifest.step == 1
    assert found.skipped == (f"{folder}: refused by load",)


def test_flipped_payload_bit_is_refused(folder, topology, saved):
    path = folder / "rank_00001.safetensors"
    good = sha256(path.read_bytes()).hexdigest()
    flip_bit(path, path.stat().st_size * 8 - 3)
    bad = sha256(path.read_bytes()).hexdigest()
    fragments = topology(1, 1, 1).cut({key: torch.full_like(t, torch.nan) for key, t in saved.items()})[0]
    with pytest.raises(CheckpointError, match=rf"rank_00001.safetensors: expected sha256 {good}, found {bad}"):
        load(find_latest(folder.parents[1]), fragments, RunConfig())
    load(find_latest(folder.parents[1]), fragments, RunConfig(), verify="none")  # asked for, and only then


def test_a_rank_reads_only_the_files_that_hold_its_own(folder, topology, saved):
    (folder / "rank_00001.safetensors").write_bytes(b"gone")
    found = open_checkpoint(folder.with_name("step_00000001"))
    moved = type(found)(folder, read_manifest(folder))
    first, second = topology(1, 2, 1).cut(saved)
    expected = [f.tensor.clone() for f in first]
    for f in first:
        f.tensor.fill_(torch.nan)
    load(moved, first, RunConfig())
    assert all(torch.equal(f.tensor, want) for f, want in zip(first, expected, strict=True))
    with pytest.raises(CheckpointError, match="rank_00001"):
        load(moved, second, RunConfig())


def set_in(*keys, to):
    def change(manifest):
        place = manifest
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


def add_row(manifest):
    """A fragment more in the first file, and its bytes."""
    file = manifest["files"][0]
    for column in file["fragments"].values():
        column.append(column[-1])
    file["size"] += 4 * file["fragments"]["numel"][-1]


def drop_row(manifest):
    for column in manifest["files"][0]["fragments"].values():
        column.pop(0)


def drop_part_of_a_row(manifest):
    manifest["files"][1]["fragments"]["numel"][0] -= 1


def overlap(manifest):
    table = manifest["files"][1]["fragments"]
    row = next(i for i, start in enumerate(table["start"]) if start > 0)
    table["start"][row] -= 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_in("files", 0, "name", to="rank_00001.safetensors"), "files: a name appears twice"),
        (set_in("files", 0, "size", to=-1), r"files\.0\.size"),
        (set_in("files", 0, "size", to=2**60), r"files\.0\.size"),
        (set_in("files", 0, "size", to=100), r"do not make 100 bytes"),
        (set_in("files", 0, "size", to="100"), r"files\.0\.size: Input should be a valid integer"),
        (set_in("surprise", to=1), r"surprise: Extra inputs are not permitted"),
        (set_in("step", to=3), r"holds step 3, but the folder is named step_00000002"),
        (set_in("mesh", "world_size", to=3), "world_size 3 is not dp_size 2 x tp 1"),
        (set_in("meta", "loss", to=float("nan")), r"meta\.loss: Input should be a finite number"),
        (set_in("tensors", 0, "shape", to=[2**50, 2**50]), r"more than 2\^53 elements"),
        (set_in("tensors", 0, "tp_axis", to=2), r"tensors\.0\.tp_axis"),
        (set_in("tensors", 2, "tp_axis", to=1), r"tensor 'q.bias' of shape \(12,\) cannot be cut"),
        (set_in("tensors", 0, "tp_size", to=2), "has tp_size 2 but no tp_axis"),
        (set_in("tensors", 0, "states", "momentum", to="F32"), "state 'momentum' of a tensor is not in the list"),
        (set_in("tensors", 0, "name", to="no/slash"), r"tensors\.0\.name"),
        (set_in("files", 0, "fragments", "tensor", 0, to=99), "a tensor or state that the manifest does not list"),
        (set_in("files", 0, "fragments", "tp_rank", 0, to=1), "part 0 of 1 is missing"),
        (set_in("files", 0, "fragments", "start", to=[]), "different lengths"),
        (add_row, "stored twice"),
        (drop_row, "weight of 'wte.weight', part 0 of 1 is missing"),
        (drop_part_of_a_row, "stored up to element 119 of 120"),
        (overlap, r"elements \[\d+, \d+\) are stored twice"),
    ],
)  # fmt: skip
def test_manifest_that_is_not_whole_is_refused(change, reason, folder):
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_checkpoint(folder)
    assert str(folder / "manifest.json") in str(caught.value)
    assert find_latest(folder.parents[1]).manifest.step == 1


def test_a_whole_part_of_a_sharded_tensor_missing_is_refused(job, topology, saved):
    folder = job(topology(3, 1, 2)).save(1, saved)
    rewrite(folder, lambda manifest: manifest["files"].pop())
    with pytest.raises(CheckpointError, match=r"weight of 'wte.weight', part 1 of 2 is missing"):
        open_checkpoint(folder)


def test_absurd_tp_size_is_refused_at_once(job, topology, saved):
    folder = job(topology(3, 1, 2)).save(1, saved)

    def change(manifest):
        manifest["tensors"][0] |= {"shape": [2**50], "tp_axis": 0, "tp_size": 2**50}

    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=r"part 2 of 1125899906842624 is missing"):
        open_checkpoint(folder)


def test_files_of_another_step_or_rank_are_refused_even_without_hashing(folder, topology, saved):
    older = folder.with_name("step_00000001")
    for source in (older / "rank_00000.safetensors", folder / "rank_00001.safetensors"):
        shutil.copy(source, folder / "rank_00000.safetensors")
        found = Found(folder, read_manifest(folder))
        with pytest.raises(CheckpointError, match=r"step_00000002/rank_00000\.safetensors"):
            load(found, topology(1, 2, 1).cut(saved)[0], RunConfig(), verify="none")
