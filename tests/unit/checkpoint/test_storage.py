"""Behind a URL a checkpoint is what it is on a disk; only the bytes that are needed travel."""

import os
from itertools import chain, count

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from dgpt.checkpoint import (
    CheckpointError,
    find_latest,
    list_checkpoints,
    load,
    open_checkpoint,
    rewrite,
    show,
    verify,
)
from dgpt.checkpoint.diff import diff
from dgpt.checkpoint.progress import byte_bar
from dgpt.checkpoint.whole import read_tensor
from dgpt.cli import main
from dgpt.config import RunConfig
from dgpt.errors import UserError
from dgpt.outcome import DONE, MISTAKE
from dgpt.storage import RemotePath, place

NAMES = count()


@pytest.fixture
def url():
    """A place in memory of this test's own."""
    store, url = MemoryFileSystem(), f"memory://test-{next(NAMES)}"
    yield f"{url}/run"
    store.rm(url, recursive=True) if store.exists(url) else None


@pytest.fixture
def uploaded(url, job, topology, state):
    """The local folder of step 2 of a run of two steps and 4 ranks, and its place behind the URL."""
    ranks = job(topology(3, 2, 2))
    ranks.save(1, state(seed=1))
    folder = ranks.save(2, state(seed=2))
    MemoryFileSystem().put(str(folder.parent), f"{url}/checkpoints", recursive=True)
    return folder, place(url) / "checkpoints" / folder.name


@pytest.fixture
def traffic(monkeypatch):
    """The ranges that are asked for, as (path, start, end)."""
    asked, cat_file = [], MemoryFileSystem.cat_file

    def counted(self, path, start=None, end=None, **options):
        asked.append((path, start, end))
        return cat_file(self, path, start, end, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    return asked


def test_a_url_is_no_path_but_file_is():
    assert isinstance(place("s3://bucket/run/"), RemotePath)
    assert str(place("s3://bucket/run/") / "checkpoints") == "s3://bucket/run/checkpoints"
    assert (place("gs://b/a").name, str(place("gs://b/a").parent)) == ("a", "gs://b")
    assert place("runs/a") == place("./runs/a")
    assert str(place("file:///runs/a")) == "/runs/a"
    assert str(place("ftp://me:secret@host/run@2")) == "ftp://***@host/run@2"


def test_found_shown_listed_and_verified_as_on_a_disk(uploaded, url):
    local, remote = uploaded
    found = find_latest(url)
    assert (found.folder, found.manifest.attempt) == (remote, "a1")
    assert open_checkpoint(str(remote)).folder == remote
    assert show(remote) == show(local).replace(str(local), str(remote))
    rows, expected = list_checkpoints(url), list_checkpoints(local.parents[1])
    assert [(r.step, r.tokens, r.bytes, r.problem) for r in rows] == [
        (r.step, r.tokens, r.bytes, r.problem) for r in expected
    ]
    assert verify(remote) == []
    assert diff(open_checkpoint(local), found).equal
    assert list_checkpoints(f"{url}-none") == []
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder"):
        open_checkpoint(f"{url}-none")


def test_any_topology_is_filled_from_a_url(uploaded, url, topology, state):
    saved = state(seed=2)
    ranks = topology(1, 3, 1).cut({key: torch.full_like(tensor, torch.nan) for key, tensor in saved.items()})
    for fragments in ranks:
        load(find_latest(url), fragments, RunConfig())
    for got, want in zip(chain(*ranks), chain(*topology(1, 3, 1).cut(saved)), strict=True):
        assert torch.equal(got.tensor, want.tensor)


def test_only_the_bytes_of_a_tensor_travel(uploaded, traffic, state):
    found = open_checkpoint(uploaded[1])
    traffic.clear()
    with byte_bar("", 0, enabled=False) as advance:
        tensor = read_tensor(found, found.manifest.tensor_ids["proj.weight"], "exp_avg", advance)
    assert torch.equal(tensor, state(seed=2)["proj.weight", "exp_avg"])
    assert sum(end - start for _, start, end in traffic) == tensor.nbytes


def test_large_files_are_read_in_parts(url, traffic):
    content = os.urandom(5 << 20)
    file = place(url) / "file"
    file.write([content[: 3 << 20], memoryview(content)[3 << 20 :]])
    with file.open() as opened:
        opened.seek(100)
        assert opened.read(50) == content[100:150]
        opened.seek(1000)
        assert opened.read(3 << 20) == content[1000 : 1000 + (3 << 20)]
        assert opened.seek(-7, os.SEEK_END) == len(content) - 7
        assert opened.read() == content[-7:]
    assert max(end - start for _, start, end in traffic) <= 3 << 20
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), r"rank_00001\.safetensors: expected sha256"),
        (lambda content: content[:-1], r"rank_00001\.safetensors: expected \d+ bytes, found \d+"),
        (lambda content: None, r"rank_00001\.safetensors: No such file or directory"),
    ],
    ids=["flipped bit", "cut", "missing"],
)
def test_damage_is_found_and_named_as_on_a_disk(damage, reason, uploaded, url, topology, state, capsys):
    path = uploaded[1] / "rank_00001.safetensors"
    whole = path.read_bytes()
    content = damage(whole)
    path.delete()
    if content is not None:
        path.write([content])
    (problem,) = verify(uploaded[1])
    assert problem.startswith(str(path))
    assert main(["checkpoint", "verify", url]) == MISTAKE
    assert f"{uploaded[1].parent / 'step_00000001'}: whole, every hash matches\n" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=reason):
        load(open_checkpoint(uploaded[1]), topology(1, 1, 1).cut(state(seed=2))[0], RunConfig())
    sizes_match = content is not None and len(content) == len(whole)
    assert find_latest(url).manifest.step == (2 if sizes_match else 1)


def test_a_store_that_cuts_an_answer_short_is_damage_not_data(uploaded, monkeypatch, topology, state):
    found, cat_file = open_checkpoint(uploaded[1]), MemoryFileSystem.cat_file
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *arguments, **named: cat_file(*arguments, **named)[:-1])
    with pytest.raises(CheckpointError, match=r"asked for \d+ bytes, got \d+"):
        load(found, topology(1, 1, 1).cut(state(seed=2))[0], RunConfig())


def test_an_export_goes_to_a_url_with_its_manifest_last(uploaded, url, monkeypatch):
    order, write = [], RemotePath.write
    monkeypatch.setattr(RemotePath, "write", lambda self, chunks: order.append(self.name) or write(self, chunks))
    output, source = place(f"{url}-out"), open_checkpoint(uploaded[0])
    rewrite.export(source, output, torch.float32, {"config.toml": b"seed = 1\n", "tokenizer/model": b"m"})
    assert order == ["config.toml", "model", "rank_00000.safetensors", "manifest.sha256", "manifest.json"]
    assert verify(output) == []
    assert (output / "tokenizer" / "model").read_bytes() == b"m"
    assert all(entry.distance.equal for entry in diff(open_checkpoint(output), source).compared)
    with pytest.raises(UserError, match=r"-out' exists already"):
        rewrite.export(source, output, torch.float32, {})


def test_a_failed_upload_leaves_nothing(uploaded, url, monkeypatch):
    output, open_file = place(f"{url}-out"), MemoryFileSystem.open

    def failing(self, path, mode="rb", **options):
        if path.endswith("manifest.json") and mode == "wb":
            raise ConnectionError("reset")
        return open_file(self, path, mode, **options)

    source = open_checkpoint(uploaded[0])
    monkeypatch.setattr(MemoryFileSystem, "open", failing)
    with pytest.raises(UserError, match=r"-out/manifest.json' cannot be reached: ConnectionError: reset"):
        rewrite.export(source, output, torch.float32, {"tokenizer/model": b"m"})
    monkeypatch.undo()
    assert MemoryFileSystem().find(str(output)) == []


def test_a_missing_driver_is_named_with_its_remedy(capsys):
    fsspec.register_implementation("nodriver", "no_such_driver.FileSystem", errtxt="Install no_such_driver for it")
    for verb in (["generate"], ["checkpoint", "show"], ["checkpoint", "verify"], ["checkpoint", "list"]):
        assert main([*verb, "nodriver://bucket/run"]) == MISTAKE
        message = capsys.readouterr().err
        assert message.startswith("dgpt: 'nodriver://bucket/run")
        assert "Install no_such_driver for it" in message
        assert message.endswith("fix:  pip install no_such_driver\n")
    assert main(["checkpoint", "show", "nosuchscheme://x"]) == MISTAKE
    assert "Protocol not known: nosuchscheme" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["info", "ls", "cat_file"])
def test_an_unreachable_store_is_not_an_empty_one(method, uploaded, url, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(MemoryFileSystem, method, unreachable)
    with pytest.raises(UserError, match=r"cannot be reached: ConnectionError: no route to host") as caught:
        find_latest(url)
    assert not isinstance(caught.value, CheckpointError)  # which would send a run to an older checkpoint


@pytest.mark.parametrize(("status", "missing"), [(404, True), (410, True), (403, False), (500, False), (None, False)])
def test_a_failure_that_a_driver_calls_a_missing_file_is_a_failure(status, missing, url, monkeypatch):
    """The driver of http:// raises FileNotFoundError for whatever goes wrong, with the reason as its cause."""

    class AnswerError(Exception):
        def __init__(self):
            super().__init__(f"answer {status}")
            self.status = status

    def info(*_, **__):
        raise FileNotFoundError(url) from (AnswerError() if status else ConnectionRefusedError("refused"))

    monkeypatch.setattr(MemoryFileSystem, "info", info)
    if missing:
        assert not place(url).exists()
    else:
        with pytest.raises(UserError, match=r"cannot be reached: (AnswerError|ConnectionRefusedError): "):
            place(url).exists()


def test_a_store_without_lists_still_verifies_a_checkpoint(uploaded, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError("no lists here")

    monkeypatch.setattr(MemoryFileSystem, "ls", forbidden)
    assert verify(uploaded[1]) == []


def test_file_urls_are_local_and_follow_no_link(uploaded, tmp_path, capsys):
    local, _ = uploaded
    assert main(["checkpoint", "verify", f"file://{local}"]) == DONE
    (local / "rank_00000.safetensors").rename(tmp_path / "elsewhere")
    (local / "rank_00000.safetensors").symlink_to(tmp_path / "elsewhere")
    assert main(["checkpoint", "verify", f"file://{local}"]) == MISTAKE
    assert "is not a plain file (links are not followed)" in capsys.readouterr().out


def test_verbs_that_delete_take_no_url(url, capsys):
    assert main(["checkpoint", "prune", url, "--keep-last", "1"]) == MISTAKE
    assert "prune deletes in local folders only" in capsys.readouterr().err
