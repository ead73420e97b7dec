"""After the commit each rank reads its file back. What came back otherwise is withdrawn; nothing old goes before."""

import os
import threading
import time

import pytest

from dgpt.checkpoint import Checkpointer, CheckpointError, files, verify


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def read_back(monkeypatch):
    """read_back[rank] = function: is called with the file's path before that rank reads it back."""
    real, before = files.hash_on_disk, {}

    def hash_on_disk(path):
        before.get(int(path.stem[5:]), lambda _: None)(path)
        return real(path)

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
    with pytest.raises(CheckpointError, match="failure 3 in a row"):
        both.save(3, state(seed=1))
    for rank in both.ranks:
        with pytest.raises(CheckpointError, match="failure 3 in a row"):
            rank.wait()


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
    both.save(3, state(seed=1))
    assert both.steps == [3]


def test_a_rank_that_does_not_say_what_it_reads_does_not_cost_the_checkpoint(read_back, topology, job, state, meta):
    """It may come back when rank 0 has decided: then it waits for nobody."""
    both, held = job(topology(1, 2, 1), keep_last=1, stall_seconds=0.3), threading.Event()
    both.save(1, state(seed=1))
    read_back[1] = lambda path: held.wait(timeout=30)
    for rank, fragments in zip(both.ranks, both.topology.cut(state(seed=1)), strict=True):
        rank.save(2, fragments, meta())
    both.ranks[0].wait()
    assert "no report from rank 1" in both.said[0]
    held.set()
    begun = time.monotonic()
    both.wait()
    assert time.monotonic() - begun < 0.3
    assert (both.steps, both.leftovers, len(both.said)) == ([1, 2], [], 1)
    assert [rank.saved_step for rank in both.ranks] == [2, 2]


def test_rank_0_that_never_decides_does_not_cost_it_either(read_back, topology, job, state, meta):
    both, held = job(topology(1, 2, 1), stall_seconds=0.2), threading.Event()
    read_back[0] = lambda path: held.wait(timeout=30)
    for rank, fragments in zip(both.ranks, both.topology.cut(state(seed=1)), strict=True):
        rank.save(1, fragments, meta())
    both.ranks[1].wait()
    assert both.said == ["rank 0 did not say whether step_00000001 is whole"]
    assert both.ranks[1].saved_step == 1
    held.set()
    both.wait()


@pytest.mark.parametrize("slow", [0, 1])
def test_reading_for_long_is_a_sign_of_life(slow, read_back, topology, job, state):
    def read(path):
        for _ in range(15):
            time.sleep(0.1)
            os.utime(path)  # as hash_on_disk does now and then

    both = job(topology(1, 2, 1), stall_seconds=0.5)
    read_back[slow] = read
    both.save(1, state(seed=1))
    assert (both.steps, both.said) == ([1], [])


def test_one_that_has_lost_the_run_folder_withdraws_nothing(read_back, tmp_path, topology, state, meta):
    """It may be the checkpoint of the job that took over."""

    class Right:
        epoch, answers = 1, [True, False, False]

        def held(self):
            return self.answers.pop(0)

    said, one = [], topology(1, 1, 1)
    checkpointer = Checkpointer(tmp_path, 0, one.mesh, "a1", report=said.append, writer=Right())
    read_back[0] = flip
    checkpointer.save(1, one.cut(state(seed=1))[0], meta())
    checkpointer.wait()
    assert "the disk gives back other bytes than were written" in said[0]
    assert checkpointer.saved_step == 1
    assert verify(tmp_path / "checkpoints" / "step_00000001") != []


def test_the_disk_is_asked_not_the_page_cache(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, advice: told.append((start, length, advice)))
    (tmp_path / "file").write_bytes(os.urandom(3_000_000))
    assert files.hash_on_disk(tmp_path / "file") == files.hash_file(tmp_path / "file")
    assert told == [(0, end, os.POSIX_FADV_DONTNEED) for end in (0, 1 << 20, 2 << 20, 3_000_000)]


def test_what_a_killed_job_left_of_it_is_cleaned_up(tmp_path, topology, job, state):
    one = job(topology(1, 1, 1))
    one.save(1, state(seed=1))
    (tmp_path / "checkpoints" / "step_00000001.tmp-a1-proofs").mkdir()
    again = job(topology(1, 1, 1), attempt="a2")
    assert (again.steps, again.leftovers) == ([1], [])
