"""A preparation holds every document, is the same however it was made, and survives kill -9 at any moment."""

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dgpt.config import RunConfig, parse_config, to_toml
from dgpt.data.preparation import alone_in
from dgpt.data.shards import SourceTokens, open_split, read_index
from dgpt.data.tokenizer import load_tokenizer
from dgpt.errors import UserError


def texts_of(source: SourceTokens, folder: Path) -> list[str]:
    """Decoded documents, by the boundaries on disk; each must end with the end-of-document token."""
    tokenizer = load_tokenizer(folder)
    edges = [*source.document_starts.tolist(), source.n_tokens]
    ids = source.gather(np.array([0]), source.n_tokens)[0].tolist() if source.n_tokens else []
    documents = [ids[start:stop] for start, stop in itertools.pairwise(edges)]
    assert all(tokenizer.eod_id == document[-1] and tokenizer.eod_id not in document[:-1] for document in documents)
    return [tokenizer.decode(document[:-1]) for document in documents]


def content(folder: Path) -> dict[str, str]:
    """Hash of every file but the stamp, which holds times, and the lock."""
    files = [
        file for file in folder.rglob("*") if file.is_file() and file.name not in ("verified.json", ".prepare.lock")
    ]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_every_document_is_in_one_split_in_order(prepared: tuple[RunConfig, list[list[str]]]) -> None:
    config, texts = prepared
    folder = Path(config.data.path)
    train, val = (open_split(folder, split) for split in ("train", "val"))
    for number, of_source in enumerate(texts):
        held_out = texts_of(val.sources[number], folder)
        assert [text for text in of_source if text not in set(held_out)] == texts_of(train.sources[number], folder)
        assert [text for text in of_source if text in set(held_out)] == held_out
        assert 0.03 < len(held_out) / len(of_source) < 0.2


def test_the_index_describes_the_files(prepared: tuple[RunConfig, list[list[str]]]) -> None:
    config, texts = prepared
    folder = Path(config.data.path)
    index = read_index(folder)
    assert index["files"].keys() == content(folder).keys() - {"index.json"}
    assert {name: record["sha256"] for name, record in index["files"].items()}.items() <= content(folder).items()
    assert [source["text_bytes"] for source in index["sources"]] == [sum(len(t.encode()) for t in ts) for ts in texts]
    for source in index["sources"]:
        for split in source["splits"].values():
            sizes = [shard["tokens"] for shard in split["shards"]]
            assert sizes[:-1] == [1000] * (len(sizes) - 1)
            assert [index["files"][s["file"]]["bytes"] for s in split["shards"]] == [2 * size for size in sizes]
            assert sum(sizes) == split["tokens"]


def test_bytes_do_not_depend_on_workers_or_compression(
    prepared: tuple[RunConfig, list[list[str]]], tmp_path: Path, corpus: Any
) -> None:
    config, _ = prepared
    data = config.data.model_copy(update={"path": str(tmp_path / "again"), "num_workers": 2})
    again = corpus.prepare(config.model_copy(update={"data": data}))
    assert content(again) == content(Path(config.data.path))


def test_a_held_out_document_is_so_in_any_order(tmp_path: Path, corpus: Any) -> None:
    texts = corpus.texts(100, seed=5)
    held_out = []
    for name, order in (("forward", texts), ("backward", texts[::-1])):
        file = corpus.jsonl(tmp_path / f"{name}.jsonl", order)
        folder = corpus.prepare(corpus.config(tmp_path / name, [{"path": str(file)}], val_fraction=0.2))
        held_out.append(sorted(texts_of(open_split(folder, "val").sources[0], folder)))
    assert held_out[0] == held_out[1]
    assert 8 < len(held_out[0]) < 35


def test_a_finished_preparation_is_left_alone(tmp_path: Path, corpus: Any) -> None:
    file = corpus.jsonl(tmp_path / "a.jsonl", corpus.texts(50))
    config = corpus.config(tmp_path / "data", [{"path": str(file)}])
    folder = corpus.prepare(config)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    corpus.prepare(config)
    file.unlink()
    corpus.prepare(config)  # the sources need not be there any more
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_another_preparation_is_refused(tmp_path: Path, corpus: Any) -> None:
    file = corpus.jsonl(tmp_path / "a.jsonl", corpus.texts(50))
    config = corpus.config(tmp_path / "data", [{"path": str(file)}])
    corpus.prepare(config)
    other = corpus.config(tmp_path / "data", [{"path": str(file)}], val_fraction=0.5)
    with pytest.raises(UserError, match=r"another preparation:\n +data.val_fraction: 0.01 there, 0.5 now"):
        corpus.prepare(other)
    corpus.jsonl(file, corpus.texts(51))
    with pytest.raises(UserError, match="files of a:"):
        corpus.prepare(config)
    (tmp_path / "data" / "index.json").unlink()
    with pytest.raises(UserError, match="holds shards of which"):
        corpus.prepare(config)


def test_mistakes_are_the_users(tmp_path: Path, corpus: Any) -> None:
    file = corpus.jsonl(tmp_path / "a.jsonl", corpus.texts(50))
    with pytest.raises(UserError, match="no documents found"):
        corpus.prepare(corpus.config(tmp_path / "data", [{"path": str(tmp_path / "none" / "*.txt")}]))
    with pytest.raises(UserError, match=r"data.path: '.*a.jsonl/data' cannot be written: Not a directory"):
        corpus.prepare(corpus.config(file / "data", [{"path": str(file)}]))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "tiny.txt").write_text("tiny")
    with pytest.raises(UserError, match="different pieces"):
        corpus.prepare(corpus.config(tmp_path / "data2", [{"path": str(tmp_path / "tiny.txt")}]))
    with pytest.raises(UserError, match="they are empty"):
        corpus.prepare(corpus.config(tmp_path / "data4", [{"path": str(tmp_path / "empty.txt")}]))
    with open(file, "a") as end:
        end.write("{bad\n")
    with pytest.raises(UserError, match=r"a.jsonl', line 51"):
        corpus.prepare(corpus.config(tmp_path / "data3", [{"path": str(file)}]))


def test_a_bad_line_is_found_by_a_worker_too(tmp_path: Path, corpus: Any, bpe: object) -> None:
    file = corpus.jsonl(tmp_path / "a.jsonl", corpus.texts(50))
    given = bpe._backend.model  # type: ignore[attr-defined]
    (tmp_path / "given.model").write_bytes(given)
    with open(file, "a") as end:
        end.write("{bad\n")
    tokenizer = {"kind": "sentencepiece", "path": str(tmp_path / "given.model")}
    config = corpus.config(tmp_path / "data", [{"path": str(file)}])
    values = config.model_dump(mode="json") | {"tokenizer": tokenizer}
    with pytest.raises(UserError, match=r"a.jsonl', line 51: Expecting property name"):
        corpus.prepare(parse_config(values, "test"))


def test_one_text_file_with_everything_held_out_says_how_to_cut_it(tmp_path: Path, corpus: Any) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n".join(corpus.texts(100)))
    with pytest.raises(UserError, match="document_bytes of a source cuts"):
        corpus.prepare(corpus.config(tmp_path / "held", [{"path": str(file)}], val_fraction=0.999999))
    source = {"path": str(file), "document_bytes": 500}
    folder = corpus.prepare(corpus.config(tmp_path / "cut", [source], val_fraction=0.2))
    train, val = (texts_of(open_split(folder, split).sources[0], folder) for split in ("train", "val"))
    assert sum(map(len, train + val)) == len(file.read_text())
    assert len(train) > len(val) > 0


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(UserError, match="being prepared by another process"), alone_in(tmp_path):
        pass


def test_the_standard_library_is_prepared(tmp_path: Path, corpus: Any) -> None:
    tokenizer = {"vocab_size": 600, "train_bytes": 300_000}
    config = parse_config({"data": {"path": str(tmp_path / "std"), "num_workers": 2}, "tokenizer": tokenizer}, "test")
    data = open_split(corpus.prepare(config), "train")
    assert data.n_tokens > 2e6
    assert "import" in texts_of(data.sources[0], tmp_path / "std")[5]


SCRIPT = """
import sys
from rich.console import Console
from dgpt.config import load_config
from dgpt.data.prepare import prepare
prepare(load_config(sys.argv[1]), console=Console(quiet=True))
"""


def start(config: RunConfig, folder: Path) -> subprocess.Popen[bytes]:
    (folder / "run.toml").write_text(to_toml(config))
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder / "run.toml")], start_new_session=True)


def kill_when(process: subprocess.Popen[bytes], moment: Callable[[], bool]) -> None:
    """kill -9 of the main process alone, as soon as `moment` has come."""
    while not moment():
        assert process.poll() is None, "finished before the moment came"
        time.sleep(0.0005)
    process.kill()
    process.wait()


def workers_are_gone(process: subprocess.Popen[bytes]) -> bool:
    """Whether the workers of a killed start end by themselves."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    return False


def test_more_processes_than_the_machine_can_use_are_refused_at_once(tmp_path: Path, corpus: Any) -> None:
    cores = len(os.sched_getaffinity(0))
    source = {"path": str(corpus.jsonl(tmp_path / "a.jsonl", corpus.texts(3)))}
    with pytest.raises(UserError, match=rf"num_workers = 500 on {cores} cores"):
        corpus.prepare(corpus.config(tmp_path / "data", [source], num_workers=500))
    assert not (tmp_path / "data").exists()


def make_streams(corpus: Any, folder: Path) -> list[dict[str, object]]:
    """Sources of each kind of unit: parts of a file, a compressed stream, and a data set."""
    import gzip

    texts = corpus.texts(9000, seed=3)
    plain = corpus.jsonl(folder / "plain.jsonl", texts[:4000])
    packed = folder / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(corpus.jsonl(folder / "packed.jsonl", texts[4000:6000]).read_bytes(), 1))
    (folder / "set").mkdir()
    corpus.jsonl(folder / "set" / "train.jsonl", texts[6000:])
    return [{"path": str(plain)}, {"path": str(packed)}, {"dataset": str(folder / "set")}]


def test_kill_9_at_any_moment_changes_no_byte(tmp_path: Path, corpus: Any) -> None:
    sources = make_streams(corpus, tmp_path)
    config, whole = (corpus.config(tmp_path / name, sources, shard_tokens=20_000, num_workers=workers)
                     for name, workers in (("killed", 2), ("whole", 1)))  # fmt: skip
    folder = Path(config.data.path)
    work = folder / "prepare.work"
    moments: list[Callable[[], bool]] = [
        lambda: any(work.glob(".*.unit.*.tmp")),
        lambda: len(list(work.glob("*.unit"))) >= 2,
        lambda: any(work.glob("00002-*.unit")),
        (folder / "plain" / "train_00002.bin").exists,
        (folder / "index.json").exists,
    ]
    killed = []
    for moment in moments:  # the next start does not wait for the workers of the one before
        killed.append(start(config, tmp_path))
        kill_when(killed[-1], moment)
    assert start(config, tmp_path).wait() == 0
    assert all(map(workers_are_gone, killed))
    assert not work.exists()
    assert start(whole, tmp_path).wait() == 0
    killed_files, whole_files = content(folder), content(Path(whole.data.path))
    assert killed_files == whole_files
    assert len(killed_files) > 30


def test_units_that_are_there_are_not_made_again(tmp_path: Path, corpus: Any) -> None:
    file = corpus.jsonl(tmp_path / "plain.jsonl", corpus.texts(4000))
    config = corpus.config(tmp_path / "data", [{"path": str(file)}])
    work = tmp_path / "data" / "prepare.work"
    first = start(config, tmp_path)
    kill_when(first, lambda: len(list(work.glob("*.unit"))) >= 2)
    assert workers_are_gone(first)
    done = {unit.name: unit.stat().st_mtime_ns for unit in work.glob("*.unit")}
    second = start(config, tmp_path)
    kill_when(second, lambda: len(list(work.glob("*.unit"))) > len(done))
    assert done.items() <= {unit.name: unit.stat().st_mtime_ns for unit in work.glob("*.unit")}.items()
    assert workers_are_gone(second)


def test_the_console_shows_progress_and_a_summary(tmp_path: Path, corpus: Any) -> None:
    from dgpt.data.prepare import prepare

    file = corpus.jsonl(tmp_path / "a.jsonl", corpus.texts(50))
    console = Console(record=True, width=160, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        prepare(corpus.config(tmp_path / "data", [{"path": str(file)}]), console=console)
    text = console.export_text()
    assert "MB/s" in text
    assert "M tokens/s" in text
    assert "bytes per token" in text
