"""After the commit each rank reads its file back. What came back otherwise is withdrawn; nothing old goes before."""

import threading
import time
from pathlib import Path

import pytest

from dgpt.checkpoint import Checkpointer, files, verify
from dgpt.checkpoint.job import Job
from dgpt.checkpoint.read import read_manifest


def flip(path, at=-1):
    """The same however often it is done."""
    content = bytearray(path.read_bytes())
    content[at] = 0xA5
    path.write_bytes(content)


@pytest.fixture
def read_back(monkeypatch):
    """read_back[rank] = function: is called with the file's path before that rank reads it back."""
    real, before = files.hash_on_disk, {}

    def hash_on_disk(path, alive):
        before.get(int(path.stem[5:]), lambda _: None)(path)
        return real(path, alive)

    monkeypatch.setattr(files, "hash_on_disk", hash_on_disk)
    return before


def fail(path):
    raise OSError(5, "Input/output error")


def test_a_checkpoint_is_there_before_it_is_read_back_and_the_old_one_goes_after_it(read_back, topology, job, state):
    both, seen = job(topology(1, 2, 1), keep_last=1), []
    read_back[1] = lambda path: seen.append(both.steps)
    both.save(1, state(seed=1))
    both.save(2, state(seed=1))
    assert seen == [[1], [1, 2]]
    assert (both.steps, both.leftovers, both.said) == ([2], [], [])


@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize(("ranks", "bad"), [(1, 0), (2, 0), (2, 1)])
def test_what_comes_back_otherwise_is_withdrawn_on_all_ranks(at, ranks, bad, read_back, topology, job, state):
    run = job(topology(1, ranks, 1), keep_last=1)
    run.save(1, state(seed=1))
    read_back[bad] = lambda path: flip(path, at)
    run.save(2, state(seed=1))
    assert [rank.saved_step for rank in run.ranks] == [1] * ranks
    assert (run.steps, run.leftovers) == ([1], [])
    assert len(run.said) == ranks
    assert all("CHECKPOINT NOT SAVED at step 2 (failure 1 in a row" in said for said in run.said)
    assert f"rank {bad}: step_00000002/rank_0000{bad}.safetensors: the disk gives back other bytes" in run.said[0]
    del read_back[bad]
    run.save(3, state(seed=1))
    assert (run.steps, len(run.said)) == ([3], ranks)


def test_the_third_in_a_row_ends_the_run_on_all_ranks(read_back, topology, job, state):
    both = job(topology(1, 2, 1))
    read_back[1] = flip
    for step in (1, 2):
        both.save(step, state(seed=1))
    both.gives_up(3, state(seed=1))


@pytest.mark.parametrize("bad", [0, 1])
def test_a_file_that_cannot_be_read_back_stays_and_so_do_older_ones(bad, read_back, topology, job, state):
    """A disk or network that fails tells nothing of the checkpoint."""
    both = job(topology(1, 2, 1), keep_last=1)
    both.save(1, state(seed=1))
    read_back[bad] = fail
    both.save(2, state(seed=1))
    assert (both.steps, both.leftovers) == ([1, 2], [])
    assert [rank.saved_step for rank in both.ranks] == [2, 2]
    assert f"rank {bad}: step_00000002/rank_0000{bad}.safetensors cannot be read back" in both.said[0]
    assert "Input/output error" in both.said[0]
    del read_back[bad]
    for step in (3, 4):
        both.save(step, state(seed=1))
        assert both.steps == [2, step]  # 2 may be whole or not: it neither counts nor goes


def test_bytes_that_are_right_when_they_are_read_again_are_right(read_back, monkeypatch, topology, job, state):
    one, found, real = job(topology(1, 1, 1)), ["other"], files.hash_on_disk
    monkeypatch.setattr(files, "hash_on_disk", lambda path, alive: found.pop() if found else real(path, alive))
    one.save(1, state(seed=1))
    assert (one.steps, one.said, found) == ([1], [], [])


def test_damage_counts_though_another_rank_is_silent(read_back, topology, job, state, meta):
    three, held = job(topology(1, 3, 1), stall_seconds=2.0), threading.Event()
    read_back[1], read_back[2] = flip, lambda path: held.wait(timeout=30)
    for rank, fragments in zip(three.ranks, three.topology.cut(state(seed=1)), strict=True):
        rank.save(1, fragments, meta())
    three.ranks[0].wait()
    assert "rank 1: step_00000001/rank_00001.safetensors: the disk gives back other bytes" in three.said[-1]
    assert three.steps == []
    held.set()
    three.wait()
    assert [rank.saved_step for rank in three.ranks] == [None] * 3


def test_a_manifest_that_cannot_be_opened_for_once_costs_nothing(monkeypatch, tmp_path, topology, job, state):
    """Of any look at it, on either rank: the checkpoint stays."""
    real = files.open_regular
    for number in range(6):
        both, looks = job(topology(1, 2, 1), run_dir=tmp_path / str(number)), []

        def open_regular(path, looks=looks, number=number):
            if path.name == "manifest.json":
                looks.append(path)
                if len(looks) == number + 1:
                    raise OSError(24, "Too many open files")
            return real(path)

        monkeypatch.setattr(files, "open_regular", open_regular)
        both.save(1, state(seed=1))
        monkeypatch.setattr(files, "open_regular", real)
        assert both.steps == [1]
        assert both.leftovers == []
        assert [rank.saved_step for rank in both.ranks] == [1, 1]


def test_a_rank_that_does_not_say_what_it_reads_does_not_cost_the_checkpoint(read_back, topology, job, state, meta):
    """It may come back when rank 0 has decided: then it waits for nobody."""
    both, held = job(topology(1, 2, 1), keep_last=1, stall_seconds=2.0), threading.Event()
    both.save(1, state(seed=1))
    read_back[1] = lambda path: held.wait(timeout=30)
    for rank, fragments in zip(both.ranks, both.topology.cut(state(seed=1)), strict=True):
        rank.save(2, fragments, meta())
    both.ranks[0].wait()
    assert "no report from rank 1" in both.said[0]
    held.set()
    begun = time.monotonic()
    both.wait()
    assert time.monotonic() - begun < 3  # and not twice the patience of rank 0
    assert (both.steps, both.leftovers, len(both.said)) == ([1, 2], [], 1)
    assert [rank.saved_step for rank in both.ranks] == [2, 2]


def test_rank_0_that_never_decides_does_not_cost_it_either(read_back, topology, job, state, meta):
    both, held = job(topology(1, 2, 1), stall_seconds=1.5), threading.Event()
    read_back[0] = lambda path: held.wait(timeout=30)
    for rank, fragments in zip(both.ranks, both.topology.cut(state(seed=1)), strict=True):
        rank.save(1, fragments, meta())
    both.ranks[1].wait()
    assert both.said == ["rank 0 did not say whether step_00000001 is whole"]
    assert both.ranks[1].saved_step == 1
    held.set()
    both.wait()


@pytest.mark.parametrize("slow", [0, 1])
def test_reading_for_long_is_a_sign_of_life(slow, monkeypatch, topology, job, state):
    real = files.hash_on_disk

    def hash_on_disk(path, alive):
        for _ in range(25 if path.stem == f"rank_0000{slow}" else 0):
            time.sleep(0.1)
            alive()
        return real(path, alive)

    three = job(topology(1, 3, 1), stall_seconds=1.0)  # rank 2 hears of rank 0 that it still collects
    monkeypatch.setattr(files, "hash_on_disk", hash_on_disk)
    three.save(1, state(seed=1))
    assert (three.steps, three.leftovers, three.said) == ([1], [], [])


def test_nothing_in_the_checkpoint_is_touched(read_back, topology, job, state):
    """A job that wakes up here may not be the one that writes to the run folder any more."""
    both, before = job(topology(1, 2, 1)), {}
    read_back[0] = read_back[1] = lambda path: before.update({path: path.stat().st_mtime_ns})
    both.save(1, state(seed=1))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(before) == 2


def test_the_ranks_can_meet_as_soon_as_it_is_there_and_nothing_is_left_if_it_is_not(monkeypatch, topology, job, state):
    both, seen = job(topology(1, 2, 1)), []

    def replace_folder(new, final, attempt):
        seen.append(new.with_name(f"{new.name}-proofs").is_dir())
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "replace_folder", replace_folder)
    both.save(1, state(seed=1))
    assert (seen, both.steps, both.leftovers) == ([True], [], [])


def test_no_rank_waits_for_a_decision_when_rank_0_cannot_see_whether_it_has_committed(
    monkeypatch, topology, job, state
):
    both, replace, wrote = job(topology(1, 2, 1), keep_last=2, stall_seconds=15), files.replace_folder, Job.wrote

    def replace_folder(new, final, attempt):
        replace(new, final, attempt)
        fail(final)

    def of_rank_1(one, folder):
        return wrote(one, folder) if one.rank else fail(folder)

    monkeypatch.setattr(files, "replace_folder", replace_folder)
    monkeypatch.setattr(Job, "wrote", of_rank_1)
    begun = time.monotonic()
    both.save(1, state(seed=1))
    assert time.monotonic() - begun < 15
    assert (both.steps, both.leftovers, len(both.said)) == ([1], [], 1)
    assert [rank.saved_step for rank in both.ranks] == [None, 1]
    monkeypatch.undo()
    for step in (2, 3, 4):
        both.save(step, state(seed=1))
    assert both.steps == [1, 3, 4]  # the first, not known to be whole, neither counts nor goes


@pytest.fixture
def alone(tmp_path, topology, state, meta):
    """alone(right): a job of one rank with this right to write saves step 1, which comes back otherwise; its folder."""

    def save(right):
        said, one = [], topology(1, 1, 1)
        checkpointer = Checkpointer(tmp_path, 0, one.mesh, "a1", report=said.append, writer=right)
        checkpointer.save(1, one.cut(state(seed=1))[0], meta())
        checkpointer.wait()
        assert "the disk gives back other bytes than were written" in said[0]
        assert checkpointer.saved_step is None
        return tmp_path / "checkpoints" / "step_00000001"

    return save


class Right:
    epoch = 1

    def __init__(self, *answers):
        self.answers = list(answers)

    def held(self):
        answer = self.answers.pop(0)
        return answer() if callable(answer) else answer


def test_one_that_has_lost_the_run_folder_withdraws_nothing(read_back, alone):
    read_back[0] = flip
    assert verify(alone(Right(True, False))) != []


def test_one_that_was_stopped_does_not_withdraw_what_its_successor_saved(
    read_back, alone, tmp_path, job, topology, state
):
    """The successor takes over, and saves the same step, after the first has asked whether it may."""

    def taken_over():
        job(topology(1, 1, 1), attempt="a2").save(1, state(seed=2))
        return True

    read_back[0] = lambda path: flip(path) if b'"attempt":"a1"' in (path.parent / "manifest.json").read_bytes() else 0
    folder = alone(Right(True, taken_over))
    assert verify(folder) == []
    assert read_manifest(folder).attempt == "a2"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_withdrawal_that_fails_is_a_failed_save(read_back, alone, monkeypatch):
    read_back[0] = flip
    real = Path.rename

    def rename(path, target):
        if str(target).endswith("-withdrawn"):
            raise OSError(5, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert verify(alone(None)) != []


def test_what_a_killed_job_left_of_it_is_cleaned_up(tmp_path, topology, job, state):
    one = job(topology(1, 1, 1))
    one.save(1, state(seed=1))
    (tmp_path / "checkpoints" / "step_00000001.tmp-a1-proofs").mkdir()
    again = job(topology(1, 1, 1), attempt="a2")
    assert (again.steps, again.leftovers) == ([1], [])
