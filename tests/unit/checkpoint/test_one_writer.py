"""Only the holder of the run folder commits."""

import os
import threading
from dataclasses import dataclass, field

import pytest

from dgpt.checkpoint import Checkpointer, commit, files, find_latest
from dgpt.checkpoint import job as jobs
from dgpt.lease import Lease


@dataclass
class Right:
    """A lease that says what a test wants."""

    epoch: int = 7
    answers: list[bool] = field(default_factory=list)

    def held(self) -> bool:
        return self.answers.pop(0)


@pytest.fixture
def one(tmp_path, topology):
    """one(right): the single rank of a job with that right to write."""
    return lambda right, **options: Checkpointer(
        tmp_path, 0, topology(1, 1, 1).mesh, "a1", writer=right, report=options.pop("report", print), **options
    )


def test_the_epoch_is_in_the_manifest(tmp_path, one, topology, state, meta):
    with Lease.take(tmp_path), Lease.take(tmp_path / "other"):
        pass
    with Lease.take(tmp_path) as lease:
        checkpointer = one(lease)
        checkpointer.save(1, topology(1, 1, 1).cut(state(seed=1))[0], meta())
        checkpointer.wait()
    assert find_latest(tmp_path).manifest.epoch == lease.epoch == 2


def test_one_that_lost_the_folder_commits_nothing(tmp_path, one, topology, state, meta):
    said = []
    checkpointer = one(Right(answers=[False]), report=said.append)
    checkpointer.save(1, topology(1, 1, 1).cut(state(seed=1))[0], meta())
    checkpointer.wait()
    assert "CHECKPOINT NOT SAVED at step 1" in said[0]
    assert "this job may no longer be the one that writes to the run folder" in said[0]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_one_that_loses_the_folder_between_the_question_and_the_rename_commits_nothing(
    monkeypatch, tmp_path, one, topology, job, state, meta
):
    """It is asked, says yes, sleeps; the next start cleans up and saves; it wakes and finds nothing to rename."""
    asked, wake, said = threading.Event(), threading.Event(), []
    real = files.replace_folder

    def replace_folder(new, final, attempt):
        if attempt == "a1":
            asked.set()
            assert wake.wait(timeout=30)
        real(new, final, attempt)

    monkeypatch.setattr(files, "replace_folder", replace_folder)
    checkpointer = one(Right(answers=[True]), report=said.append)
    checkpointer.save(5, topology(1, 1, 1).cut(state(seed=1))[0], meta())
    assert asked.wait(timeout=30)
    job(topology(1, 1, 1), attempt="a2").save(5, state(seed=2))
    wake.set()
    checkpointer.wait()
    assert "CHECKPOINT NOT SAVED at step 5" in said[0]
    assert find_latest(tmp_path).manifest.attempt == "a2"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]


def test_one_that_lost_the_folder_after_its_commit_prunes_nothing(tmp_path, one, topology, job, state, meta):
    job(topology(1, 1, 1)).save(1, state(seed=1))
    checkpointer = one(Right(answers=[True, False]), keep_last=1)
    checkpointer.save(2, topology(1, 1, 1).cut(state(seed=1))[0], meta())
    checkpointer.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000001", "step_00000002"]


def test_the_checkpoint_that_the_run_came_from_is_not_pruned(tmp_path, topology, job, state):
    job(topology(1, 1, 1)).save(1, state(seed=1))
    again = job(topology(1, 1, 1), attempt="a2", keep_last=1)
    again.ranks[0].continues(tmp_path / "checkpoints" / "step_00000001", {})
    for step in (2, 3, 4):
        again.save(step, state(seed=1))
    assert again.steps == [1, 4]


def test_a_folder_that_somebody_removes_while_it_is_written_is_noticed_at_once(monkeypatch, topology, job, state, meta):
    """Long before the patience of rank 0 is over."""
    both = job(topology(1, 2, 1), stall_seconds=1000)
    real = commit.collect

    def collect(running, folder, *rest):
        files.delete_folder(folder, "somebody")
        return real(running, folder, *rest)

    monkeypatch.setattr(commit, "collect", collect)
    both.ranks[0].save(1, both.topology.cut(state(seed=1))[0], meta())
    both.ranks[0].wait()
    assert "step_00000001.tmp-a1 was removed while ranks reported to it" in both.said[0]


@pytest.mark.parametrize(("rank", "free"), [(0, 5_000), (1, 5_000)])
def test_a_disk_too_full_is_found_before_anything_is_written(
    rank, free, monkeypatch, tmp_path, topology, job, state, meta
):
    """Each rank asks for the space of all files, of some 3,600 bytes each: nobody fills the disk of the others."""
    both = job(topology(1, 2, 1), stall_seconds=0.2)
    monkeypatch.setattr(commit.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free})())
    monkeypatch.setattr(files, "write_hashed", lambda path, chunks: pytest.fail("written") if "safe" in path.name
                        else (0, ""))  # fmt: skip
    both.ranks[rank].save(1, both.topology.cut(state(seed=1))[rank], meta())
    both.ranks[rank].wait()
    assert f"rank {rank} could not write" in both.said[0]
    assert f"bytes are needed and {free:,} are free" in both.said[0]


def test_a_file_of_another_length_than_its_rank_wrote_is_not_committed(monkeypatch, topology, job, state):
    both, real = job(topology(1, 2, 1)), files.write_hashed

    def write_hashed(path, chunks):
        written = real(path, chunks)
        if path.name == "rank_00001.safetensors":
            os.truncate(path, 1000)
        return written

    monkeypatch.setattr(files, "write_hashed", write_hashed)
    both.save(1, state(seed=1))
    assert "rank_00001.safetensors does not have the" in both.said[0]
    assert (both.steps, both.leftovers) == ([], [])


def test_an_error_after_the_rename_does_not_make_a_checkpoint_uncommitted(monkeypatch, topology, job, state):
    """On all ranks alike: it is there. But perhaps not after a loss of power, so that the one before it stays."""
    both, real = job(topology(1, 2, 1), keep_last=1), files.sync_folder
    both.save(1, state(seed=1))

    def sync_folder(path):
        if path.name == "checkpoints":
            raise OSError(5, "Input/output error")
        real(path)

    monkeypatch.setattr(files, "sync_folder", sync_folder)
    both.save(2, state(seed=1))
    assert [rank.saved_step for rank in both.ranks] == [2, 2]
    assert both.said == ["[Errno 5] Input/output error"]
    assert both.steps == [1, 2]


def test_a_file_system_that_fails_while_a_rank_waits_is_a_failed_save(monkeypatch, topology, job, state, meta):
    both = job(topology(1, 2, 1))
    monkeypatch.setattr(commit, "await_decision", lambda *_: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
    both.ranks[1].save(1, both.topology.cut(state(seed=1))[1], meta())
    both.ranks[1].wait()
    assert "rank 1: [Errno 116] Stale file handle" in both.said[0]


def test_manifests_are_read_once_in_the_life_of_a_job(monkeypatch, topology, job, state):
    job(topology(1, 1, 1)).save(1, state(seed=1))
    read, real = [], jobs.read_manifest
    monkeypatch.setattr(jobs, "read_manifest", lambda folder: read.append(folder.name) or real(folder))
    again = job(topology(1, 1, 1), attempt="a2", keep_last=2)
    for step in range(2, 7):
        again.save(step, state(seed=1))
    assert again.steps == [5, 6]
    assert read == ["step_00000001"]
