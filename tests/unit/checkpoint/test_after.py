"""After a save each rank reads its file back; until all have, the checkpoint before it stays."""

import pytest

from dgpt.checkpoint import CheckpointError, files


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def folders_of(run):
    return sorted(int(path.name[5:]) for path in (run.run_dir / "checkpoints").iterdir())


@pytest.fixture
def bad_disk(monkeypatch):
    """bad_disk[name] = damage: what is written to the file of that name comes back otherwise."""
    real, damages = files.write_hashed, {}

    def write_hashed(path, chunks):
        written = real(path, chunks)
        if path.name in damages:
            damages[path.name](path)
        return written

    monkeypatch.setattr(files, "write_hashed", write_hashed)
    return damages


def test_a_checkpoint_is_there_before_it_is_read_back(monkeypatch, topology, job, state):
    one, seen, real = job(topology(1, 1, 1)), [], files.hash_on_disk
    monkeypatch.setattr(files, "hash_on_disk", lambda path: seen.append(one.steps) or real(path))
    one.save(1, state(seed=1))
    assert seen == [[1]]


@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize(("ranks", "then"), [(1, [[2, 3], [2, 4]]), (2, [[1, 2, 3], [2, 3, 4]])])
def test_the_one_before_stays_when_bytes_come_back_otherwise(at, ranks, then, bad_disk, topology, job, state):
    """The damaged one does not count as kept, nor is it deleted. The rank that sees it says it."""
    run, name = job(topology(1, ranks, 1), keep_last=1), f"rank_0000{ranks - 1}.safetensors"
    run.save(1, state(seed=1))
    bad_disk[name] = lambda path: flip(path, at)
    run.save(2, state(seed=1))
    assert folders_of(run) == [1, 2]
    del bad_disk[name]
    [said] = run.said
    assert said.startswith(f"CHECKPOINT DAMAGED at step 2: rank {ranks - 1}, step_00000002/{name}: the disk gives back")
    for step, folders in zip((3, 4), then, strict=True):
        run.save(step, state(seed=1))
        assert folders_of(run) == folders
    assert len(run.said) == 1


def test_a_file_that_cannot_be_read_back_is_no_proof(monkeypatch, topology, job, state):
    one, real = job(topology(1, 1, 1), keep_last=1), files.hash_on_disk
    one.save(1, state(seed=1))
    monkeypatch.setattr(files, "hash_on_disk", lambda path: (path.unlink(), real(path)))
    one.save(2, state(seed=1))
    assert "step_00000002/rank_00000.safetensors cannot be read back: [Errno 2]" in one.said[0]
    assert folders_of(one) == [1, 2]


def test_the_newest_that_all_have_read_back_is_not_deleted(bad_disk, topology, job, state):
    """Rank 0 hears of the others with the next save."""
    both = job(topology(1, 2, 1), keep_last=1)
    for step in (1, 2, 3, 4):
        both.save(step, state(seed=1))
        assert both.steps == [step] if step == 1 else [step - 1, step]


def test_a_failed_save_in_between_changes_nothing(bad_disk, monkeypatch, topology, job, state):
    both = job(topology(1, 2, 1), keep_last=1)
    both.save(1, state(seed=1))
    with monkeypatch.context() as failing:
        failing.setattr(files, "write_hashed", lambda path, chunks: (_ for _ in ()).throw(OSError(28, "No space")))
        both.save(2, state(seed=1))
    both.save(3, state(seed=1))
    assert both.steps == [1, 3]
    both.save(4, state(seed=1))
    assert both.steps == [3, 4]


def test_a_disk_that_gives_back_other_bytes_again_and_again_is_not_written_to(bad_disk, topology, job, state):
    """Then the saves fail, on all ranks, and the third failure ends the run."""
    both = job(topology(1, 2, 1))
    bad_disk["rank_00001.safetensors"] = flip
    for step in (1, 2, 3, 4, 5):
        both.save(step, state(seed=1))
    assert both.steps == [1, 2, 3]
    assert "the last 3 files came back from the disk other than they were written" in both.said[3]
    with pytest.raises(CheckpointError, match="failure 3 in a row"):
        both.save(6, state(seed=1))
