"""Saving: in the background, all or nothing, and nothing lost when it fails."""

import threading
import time

import pytest
import torch

from dgpt.checkpoint import Checkpointer, commit, files, find_latest, load, save, verify
from dgpt.config import RunConfig


@pytest.fixture
def fail_writes(monkeypatch):
    """fail_writes(name): writing the file of that name raises OSError."""
    real, failing = files.write_hashed, {}

    def write_hashed(path, chunks):
        for name, error in failing.items():
            if path.name.startswith(name):
                raise error
        return real(path, chunks)

    def start(name):
        failing[name] = OSError(28, "No space left on device")
        return failing

    monkeypatch.setattr(files, "write_hashed", write_hashed)
    return start


@pytest.fixture
def gate(monkeypatch):
    """Holds every write until `set`."""
    real, opened = files.write_hashed, threading.Event()

    def write_hashed(path, chunks):
        assert opened.wait(timeout=30)
        return real(path, chunks)

    monkeypatch.setattr(files, "write_hashed", write_hashed)
    yield opened
    opened.set()


def test_save_returns_after_the_copy_and_writes_what_was_there_then(gate, tmp_path, topology, job, state, meta):
    one = job(topology(1, 1, 1))
    saved = state(seed=1)
    live = one.topology.cut(saved)[0]
    one.ranks[0].save(1, live, meta())  # returns although nothing can be written
    assert find_latest(tmp_path) is None
    assert one.ranks[0].saved_step is None
    for fragment in live:
        fragment.tensor.zero_()
    gate.set()
    one.wait()
    assert one.ranks[0].saved_step == 1
    load(find_latest(tmp_path), live, RunConfig())
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(live, one.topology.cut(saved)[0], strict=True))


def test_next_save_waits_for_the_one_that_is_running(gate, topology, job, state, meta):
    one = job(topology(1, 1, 1))
    fragments = one.topology.cut(state(seed=1))[0]
    one.ranks[0].save(1, fragments, meta())
    timer = threading.Timer(0.2, gate.set)
    timer.start()
    one.ranks[0].save(2, fragments, meta())
    assert gate.is_set()
    assert one.ranks[0].saved_step == 1
    one.wait()
    timer.join()
    assert one.steps == [1, 2]


def test_host_buffer_is_allocated_once(monkeypatch, topology, job, state):
    sizes, real = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: sizes.append(shape) or real(*shape, **options))
    one = job(topology(1, 1, 1))
    for step in (1, 10, 10_000_000_000):  # the header holds the step, and grows with it
        one.save(step, state(seed=1))
    [size] = [size for size in sizes if size != (0,)]
    assert 0 < size[0] - sum(t.nbytes for t in state(seed=1).values()) < 4 * files.PAGE_BYTES


def test_meta_is_kept(tmp_path, topology, job, state, meta):
    both = job(topology(1, 2, 2))
    both.save(12, state(seed=1))
    manifest = find_latest(tmp_path).manifest
    assert (manifest.step, manifest.meta, manifest.mesh) == (12, meta(), both.topology.mesh)
    assert manifest.torch == torch.__version__


@pytest.mark.parametrize(
    "name", ["rank_00000.safetensors", "rank_00001.safetensors", "manifest.json", "manifest.sha256"]
)
def test_failed_write_aborts_on_all_ranks_and_the_run_goes_on(name, fail_writes, tmp_path, topology, job, state):
    both = job(topology(1, 2, 1))
    both.save(1, state(seed=1))
    failing = fail_writes(name)
    both.save(2, state(seed=2))
    assert both.steps == [1]
    assert both.leftovers == []
    assert [c.saved_step for c in both.ranks] == [1, 1]
    assert len(both.said) == 2
    assert all("CHECKPOINT NOT SAVED at step 2" in text for text in both.said)
    assert "No space left on device" in both.said[0]
    failing.clear()
    both.save(3, state(seed=3))
    assert both.steps == [1, 3]
    assert verify(tmp_path / "checkpoints" / "step_00000003") == []


@pytest.mark.parametrize("rank", [0, 1])
def test_no_more_threads_or_memory_is_a_failed_write_like_any_other(rank, monkeypatch, topology, job, state):
    both, real = job(topology(1, 2, 1)), files.write_hashed

    def write_hashed(path, chunks):
        if path.name == f"rank_0000{rank}.safetensors":
            raise RuntimeError("can't start new thread")
        return real(path, chunks)

    monkeypatch.setattr(files, "write_hashed", write_hashed)
    both.save(1, state(seed=1))
    assert (both.steps, both.leftovers) == ([], [])
    assert len(both.said) == 2
    assert "can't start new thread" in both.said[0]  # of rank 0; the other may only know that rank 0 could not


def test_a_rank_whose_write_failed_ends_the_save_with_the_others(fail_writes, monkeypatch, topology, job, state, meta):
    """It would wait for them in a collective, for longer than that may take."""
    both, held, real = job(topology(1, 2, 1)), threading.Event(), commit.collect

    def collect(*arguments):
        assert held.wait(timeout=30)
        return real(*arguments)

    fail_writes("rank_00001.safetensors")
    monkeypatch.setattr(commit, "collect", collect)
    for checkpointer, fragments in zip(both.ranks, both.topology.cut(state(seed=1)), strict=True):
        checkpointer.save(1, fragments, meta())
    both.ranks[1].wait(seconds=0.7)
    assert both.said == []
    held.set()
    both.wait()
    assert len(both.said) == 2


def test_no_rank_waits_for_what_rank_0_deletes(monkeypatch, topology, job, state, meta):
    both, held, real = job(topology(1, 2, 1), keep_last=1), threading.Event(), save.prune

    def prune(*arguments, **named):
        assert held.wait(timeout=30)
        return real(*arguments, **named)

    monkeypatch.setattr(save, "prune", prune)
    for step in (1, 2):
        for checkpointer, fragments in zip(both.ranks, both.topology.cut(state(seed=1)), strict=True):
            checkpointer.save(step, fragments, meta())
        if step == 2:
            held.set()
        for checkpointer in both.ranks:
            checkpointer.wait_for_save()
            assert checkpointer.saved_step == step
    both.wait()
    assert (both.steps, both.said) == ([2], [])


def test_third_failure_in_a_row_raises_on_every_rank(fail_writes, tmp_path, topology, job, state):
    both = job(topology(1, 2, 1))
    failing = fail_writes("rank_00001.safetensors")
    for step in (1, 2):
        both.save(step, state(seed=1))
    failing.clear()
    both.save(3, state(seed=1))  # a success in between starts the count again
    fail_writes("rank_00001.safetensors")
    for step in (4, 5):
        both.save(step, state(seed=1))
    both.gives_up(6, state(seed=1))
    assert both.steps == [3]


def test_folder_that_cannot_be_made(tmp_path, topology, job, state):
    both = job(topology(1, 2, 1))
    (tmp_path / "checkpoints").write_text("a file is in the way")
    both.save(1, state(seed=1))
    assert len(both.said) == 2
    assert all("rank_0000" in text for text in both.said)


def test_rank_that_never_reports_is_named(topology, job, state, meta):
    both = job(topology(1, 2, 1), stall_seconds=0.2)
    both.ranks[0].save(1, both.topology.cut(state(seed=1))[0], meta())
    both.wait()
    assert "no report from rank 1" in both.said[0]
    assert both.leftovers == []


def test_rank_0_that_never_commits_is_noticed(topology, job, state, meta):
    both = job(topology(1, 2, 1), stall_seconds=0.1)
    both.ranks[1].save(1, both.topology.cut(state(seed=1))[1], meta())
    both.wait()
    assert "rank 0 did not commit" in both.said[0]


def test_rank_0_may_take_as_long_again_over_the_manifest(monkeypatch, topology, job, state):
    """It waits for reports for `stall_seconds`; only then the others would be too early."""
    both, real = job(topology(1, 2, 1), stall_seconds=1.5), commit._publish

    def publish(running, parts):
        time.sleep(2.2)
        real(running, parts)

    monkeypatch.setattr(commit, "_publish", publish)
    both.save(1, state(seed=1))
    assert (both.steps, both.said, [rank.saved_step for rank in both.ranks]) == ([1], [], [1, 1])


def test_fragments_that_do_not_make_a_whole_are_not_committed(topology, job, state, meta):
    both = job(topology(1, 2, 1))
    first, second = both.topology.cut(state(seed=1))
    both.ranks[0].save(1, [f for f in first if f.name != "q.weight"], meta())
    both.ranks[1].save(1, second, meta())
    both.wait()
    assert "the ranks' fragments do not make a whole" in both.said[0]
    assert "weight of 'q.weight', part 0 of 1: elements [0, 13) are missing" in both.said[0]
    assert both.steps == []


def test_ranks_that_contradict_each_other_are_not_committed(topology, job, state, meta):
    both = job(topology(1, 2, 1))
    saved = state(seed=1)
    both.ranks[0].save(1, both.topology.cut(saved)[0], meta())
    both.ranks[1].save(1, both.topology.cut({k: t.to(torch.bfloat16) for k, t in saved.items()})[1], meta())
    both.wait()
    assert "contradict each other" in both.said[0]
    assert both.steps == []


def test_save_replaces_a_damaged_checkpoint_of_the_same_step(topology, job, state):
    both = job(topology(1, 2, 1))
    folder = both.save(1, state(seed=1))
    (folder / "rank_00000.safetensors").write_bytes(b"")
    job(topology(1, 2, 1), attempt="a2").save(1, state(seed=2))
    assert verify(folder) == []
    assert both.leftovers == []


def test_poll_reports_without_waiting(gate, fail_writes, topology, job, state, meta):
    one = job(topology(1, 1, 1))
    one.ranks[0].save(1, one.topology.cut(state(seed=1))[0], meta())
    one.ranks[0].poll()
    assert one.ranks[0].saved_step is None
    gate.set()
    deadline = threading.Event()
    while one.ranks[0].saved_step is None and not deadline.wait(0.01):
        one.ranks[0].poll()
    assert one.ranks[0].saved_step == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_on_a_gpu_are_copied_before_save_returns(gate, tmp_path, topology, job, state, meta):
    one = job(topology(1, 1, 1))
    saved = {key: tensor.cuda() for key, tensor in state(seed=1).items()}
    live = one.topology.cut(saved)[0]
    one.ranks[0].save(1, live, meta())
    for fragment in live:
        fragment.tensor.zero_()
    gate.set()
    one.wait()
    load(find_latest(tmp_path), live, RunConfig())
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(live, one.topology.cut(saved)[0], strict=True))


def test_attempt_that_cannot_be_a_name_is_refused(tmp_path, topology):
    with pytest.raises(ValueError, match=r"attempt = '\.\./x' is not"):
        Checkpointer(tmp_path, 0, topology(1, 1, 1).mesh, "../x")


def test_cleaning_up_names_the_saves_that_did_not_end(tmp_path, topology, job, state):
    folder = job(topology(1, 1, 1)).save(1, state(seed=1))
    for name in ("3.tmp-a1", "3.tmp-a1-proofs", "2.tmp-a0", "1.tmp-a1-proofs", "4.tmp-deleted-a1"):
        (folder.parent / f"step_0000000{name}").mkdir()
    assert files.clean(folder.parent) == ["step_00000002", "step_00000003"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_file_that_stood_where_a_checkpoint_was_to_be_is_cleaned_up(tmp_path, topology, job, state):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000001").write_text("in the way")
    job(topology(1, 1, 1)).save(1, state(seed=1))
    again = job(topology(1, 1, 1), attempt="a2")
    assert (again.steps, again.leftovers) == ([1], [])
