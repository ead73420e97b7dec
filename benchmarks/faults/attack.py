"""What an attacker who can write to the folder could leave there. Hashes are right: who writes one can write both."""

import json
import os
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.faults.damage import CHANGED, FILES, MANIFEST, SHARDS, SIZE, Damage, kind
from dgpt.checkpoint import Manifest
from dgpt.checkpoint.format import safetensors_header

TERABYTE = 1 << 40


def attacks() -> Iterator[Damage]:
    """Manifests, with the sha256 that belongs to them."""
    for name, change, reason in _changes():
        yield Damage(name, partial(_rewrite, change), MANIFEST, reason)
    for name, content, reason in _contents():
        yield Damage(name, partial(_write_manifest, content), MANIFEST, reason)
    yield Damage("a manifest of 2 GiB", _long_manifest, MANIFEST, "more than a manifest may have")
    yield Damage("a tensor of 1 TB, with a shard to match", _terabyte_shard, "", r"'wte.weight' has shape \(\d{11},")
    yield Damage("tensors of another model", partial(_rewrite, _other_tensor), "", "has no tensor 'wte.weight'")
    for name, change, where, reason in _other_runs():
        yield Damage(name, partial(_rewrite, change), where, reason, end="refuses")


def pickles() -> Iterator[Damage]:
    """A pickle that, if it is loaded, makes the folder `exploded` beside the run folder."""
    yield Damage("an extra pickle", lambda f, _: (f / "data.pkl").write_bytes(_bomb(f)), "", "", end="newest")
    for file in FILES:
        where, reason = (file, SIZE) if file in SHARDS else (MANIFEST, CHANGED)
        do = partial(_plant, file)
        yield Damage(f"a pickle in place of {kind(file)}", do, where, reason)
    yield Damage("a pickle in place of a shard, its hash in the manifest", _plant_with_hash, SHARDS[0],
                 "its header does not belong")  # fmt: skip
    yield Damage("a pickle in place of the manifest, and its hash", lambda f, _: _write_manifest(_bomb(f), f, f),
                 MANIFEST, "Invalid JSON")  # fmt: skip


def _changes() -> Iterator[tuple[str, Callable[[dict[str, Any]], object], str]]:
    file = r"files\.0\.name: String should match pattern"
    outside = f"../step_00000001/{SHARDS[0]}"
    yield "a manifest of a newer format", lambda m: m.update(format=2), r"format 2 is not known here \(this dgpt reads"
    yield "a manifest of an older format", lambda m: m.update(format=0), "format 0 is not known here"
    yield "a path that leads outside", lambda m: m["files"][0].update(name=outside), file
    yield "an absolute path", lambda m: m["files"][0].update(name="/etc/passwd"), file
    yield "a tensor of 1 TB in the manifest", lambda m: m["tensors"][0].update(shape=[TERABYTE // 4]), "stored up to"
    yield "a shard of 1 TB in the manifest", lambda m: m["files"][0].update(size=TERABYTE), "do not make 1099511627776"


def _other_runs() -> Iterator[tuple[str, Callable[[dict[str, Any]], object], str, str]]:
    """Whole, but not for this run: that is the user's to settle, so no older one is taken."""

    def model(**settings: int) -> Callable[[dict[str, Any]], object]:
        return lambda m: m["meta"]["config"]["model"].update(settings)

    data = "data.path = .* holds (data|a tokenizer) .* other than that of the checkpoint"
    yield "the manifest of another model", model(n_embd=1536), "", "another model: model.n_embd = 1536"
    yield "an unknown setting in the manifest", model(surprise=1), MANIFEST, r"model\.surprise = 1: no such setting"
    yield "the manifest of another data set", lambda m: m["meta"].update(data_hash="f" * 64), "", data
    yield "the manifest of another tokenizer", lambda m: m["meta"].update(tokenizer_hash="f" * 64), "", data


def _contents() -> Iterator[tuple[str, bytes, str]]:
    yield "a manifest that is no JSON", b"\x80 no JSON", "Invalid JSON"
    yield "a manifest nested 100,000 deep", b'{"format": 1, "x": ' + b"[" * 100_000, "Invalid JSON"
    yield "a manifest with a number of 5,000 digits", b'{"format": ' + b"1" * 5000 + b"}", "out of range"


def _rewrite(change: Callable[[dict[str, Any]], object], folder: Path, _: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    change(manifest)
    _write_manifest(json.dumps(manifest).encode(), folder, folder)


def _write_manifest(content: bytes, folder: Path, _: Path) -> None:
    (folder / MANIFEST).write_bytes(content)
    (folder / "manifest.sha256").write_text(f"{sha256(content).hexdigest()}  {MANIFEST}\n")


def _long_manifest(folder: Path, _: Path) -> None:
    os.truncate(folder / MANIFEST, 2 << 30)  # most of it is a hole, which takes no space


def _other_tensor(manifest: dict[str, Any]) -> None:
    manifest["tensors"][0]["name"] = "other.weight"


def _terabyte_shard(folder: Path, _: Path) -> None:
    """Shape, fragments, sizes and header agree, and the file is so long, of holes: refused before it is read."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    rows, file = TERABYTE // 4 // 10, manifest["files"][1]
    manifest["tensors"][0]["shape"][0] += rows
    table = file["fragments"]  # the last rank has the end of each state of the tensor
    table["numel"] = [n + 10 * rows * (t == 0) for n, t in zip(table["numel"], table["tensor"], strict=True)]
    file["size"] = 8 + 4 * sum(table["numel"])
    m = Manifest.model_validate_json(json.dumps(manifest))
    header = safetensors_header(m.step, m.attempt, m.tensors, m.states, m.files[1].fragments)
    file["size"] += len(header) - 8
    with open(folder / SHARDS[1], "r+b") as opened:
        opened.write(header)
        opened.truncate(file["size"])
    _write_manifest(json.dumps(manifest).encode(), folder, folder)


class _Bomb:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.folder,)


def _bomb(folder: Path) -> bytes:
    return pickle.dumps(_Bomb(str(folder.parents[2] / "exploded")))


def _plant(file: str, folder: Path, _: Path) -> None:
    (folder / file).write_bytes(_bomb(folder))


def _plant_with_hash(folder: Path, _: Path) -> None:
    shard = folder / SHARDS[0]
    content = _bomb(folder).ljust(shard.stat().st_size, b"\0")
    shard.write_bytes(content)
    _rewrite(lambda m: m["files"][0].update(sha256=sha256(content).hexdigest()), folder, folder)
