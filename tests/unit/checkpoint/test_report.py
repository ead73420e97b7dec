"""What a person sees of a run's checkpoints."""

import os

import pytest

from dgpt.checkpoint import CheckpointError, list_checkpoints, show, verify


@pytest.fixture
def folder(job, topology, state):
    both = job(topology(3, 2, 2))
    both.save(10, state(seed=1))
    return both.save(20, state(seed=1))


def test_list_shows_whole_and_damaged(folder):
    os.truncate(folder / "rank_00003.safetensors", 8)
    (folder.with_name("step_00000030")).mkdir()
    whole, short, empty = list_checkpoints(folder.parents[1])
    assert (whole.step, whole.tokens, whole.loss, whole.problem) == (10, 5000, 2.5, None)
    assert whole.bytes == sum(path.stat().st_size for path in whole.folder.glob("*.safetensors"))
    assert 0 <= whole.age_seconds < 60
    assert (short.step, short.tokens) == (20, 5000)
    assert "rank_00003.safetensors: expected" in short.problem
    assert (empty.step, empty.tokens, empty.bytes) == (30, None, None)
    assert "manifest.json: No such file" in empty.problem


def test_list_of_a_new_run_is_empty(tmp_path):
    assert list_checkpoints(tmp_path / "none") == []


def test_verify_names_every_damaged_file(folder, capsys):
    assert verify(folder, progress=True) == []
    assert "step_00000020" in capsys.readouterr().err
    (folder / "rank_00001.safetensors").unlink()
    content = bytearray((folder / "rank_00002.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "rank_00002.safetensors").write_bytes(content)
    (folder / "notes.txt").write_text("mine")
    stranger, missing, flipped = verify(folder)
    assert "notes.txt: not part of this checkpoint" in stranger
    assert "rank_00001.safetensors: No such file" in missing
    assert "rank_00002.safetensors: expected sha256" in flipped
    (folder / "manifest.json").unlink()
    assert len(verify(folder)) == 1


def test_show_tells_progress_topology_and_tensors(folder):
    text = show(folder)
    for fact in ("step 20, 5,000 tokens, 640 samples, loss 2.5", "4 ranks = dp 2 x tp 2, ZeRO 3", "4 files",
                 "exp_avg_sq (F32)", "proj.weight  [7, 12]  tp axis 1", "norm.weight  [13]"):  # fmt: skip
        assert fact in text, fact


def test_show_of_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"manifest\.json: No such file"):
        show(tmp_path)
