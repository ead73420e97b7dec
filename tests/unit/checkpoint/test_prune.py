"""Old checkpoints go, but never the last good one, and never by halves."""

import os

import pytest

from dgpt.checkpoint import files


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, 0, [7]), (3, 0, [5, 6, 7]), (2, 3, [3, 6, 7]), (1, 2, [2, 4, 6, 7]), (9, 0, [1, 2, 3, 4, 5, 6, 7])],
)
def test_what_pruning_keeps(keep_last, keep_every, kept, topology, job, state):
    one = job(topology(1, 1, 1), keep_last=keep_last, keep_every=keep_every)
    for step in range(1, 8):
        one.save(step, state(seed=1))
    assert one.steps == kept
    assert one.leftovers == []


def test_damaged_checkpoints_neither_count_nor_go(tmp_path, topology, job, state):
    one = job(topology(1, 1, 1), keep_last=2)
    for step in (1, 2):
        one.save(step, state(seed=1))
    os.truncate(tmp_path / "checkpoints" / "step_00000002" / "rank_00000.safetensors", 10)
    one.save(3, state(seed=1))
    assert one.steps == [1, 2, 3]
    one.save(4, state(seed=1))
    assert one.steps == [2, 3, 4]


def test_those_that_this_start_could_not_load_do_not_count_until_they_are_written_anew(topology, job, state):
    """Their sizes are right, so that only a hash tells."""
    job(topology(1, 1, 1), keep_last=9).save(1, state(seed=1))
    for step in (2, 3, 4):
        bad = job(topology(1, 1, 1), keep_last=9).save(step, state(seed=1))
    again = job(topology(1, 1, 1), attempt="a2", keep_last=2)
    seen = {bad.with_name(f"step_0000000{step}"): "a hash" for step in (3, 4)}
    again.ranks[0].continues(bad.with_name("step_00000002"), seen)
    again.save(5, state(seed=1))
    assert again.steps == [2, 3, 4, 5]
    again.save(4, state(seed=1))
    again.save(6, state(seed=1))
    assert again.steps == [2, 3, 5, 6]  # 2 is the one that it came from


def test_a_damaged_one_stays_so_when_it_could_not_be_replaced(monkeypatch, topology, job, state):
    for step in (1, 2):
        folder = job(topology(1, 1, 1)).save(step, state(seed=1))
    one, real = job(topology(1, 1, 1), attempt="a2", keep_last=2), files.replace_folder
    one.ranks[0].continues(folder.with_name("step_00000001"), {folder: "a hash"})

    def replace_folder(new, final, attempt):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "replace_folder", replace_folder)
    one.save(2, state(seed=1))
    monkeypatch.setattr(files, "replace_folder", real)
    one.save(3, state(seed=1))
    assert one.steps == [1, 2, 3]
    one.save(4, state(seed=1))
    assert one.steps == [1, 2, 3, 4]


def test_after_going_back_new_checkpoints_are_not_pruned_in_favour_of_later_steps(topology, job, state):
    job(topology(1, 1, 1)).save(100, state(seed=1))
    again = job(topology(1, 1, 1), attempt="a2", keep_last=1)
    for step in (50, 51):
        again.save(step, state(seed=1))
    assert again.steps == [51, 100]


def test_failed_pruning_is_said_and_the_checkpoint_counts(monkeypatch, tmp_path, topology, job, state):
    one = job(topology(1, 1, 1), keep_last=1)
    one.save(1, state(seed=1))

    def rmtree(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(files.shutil, "rmtree", rmtree)
    one.save(2, state(seed=1))
    assert one.said == ["an old checkpoint could not be deleted: [Errno 16] Device or resource busy"]
    assert one.ranks[0].saved_step == 2
