"""What can happen to the files of a checkpoint at rest, by accident."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

NEWEST, OLDER = "step_00000002", "step_00000001"
MANIFEST, HASH = "manifest.json", "manifest.sha256"
SHARDS = ("rank_00000.safetensors", "rank_00001.safetensors")
FILES = (*SHARDS, MANIFEST, HASH)
SIZE, GONE, LINK = r"expected \d+ bytes, found \d+", "No such file", "is not a plain file"
CHANGED, FOREIGN = "expected the sha256", "expected sha256|header does not belong"


@dataclass(frozen=True)
class Damage:
    """`do` gets the folder of the newest checkpoint, and one that holds a whole copy of the older one for its use."""

    name: str
    do: Callable[[Path, Path], object]
    where: str  # the file of the newest that is to be named; empty: its folder
    reason: str  # regular expression
    end: Literal["older", "refuses", "newest"] = "older"  # which checkpoint is used, where there is an older one
    note: str = ""


def kind(file: str) -> str:
    return "a shard" if file in SHARDS else file


def bit_flips(folder: Path, count: int) -> Iterator[Damage]:
    """`count` random single bits, as many in each file."""
    chance = random.Random(0)
    for i in range(count):
        file = FILES[i % len(FILES)]
        bit = chance.randrange((folder / file).stat().st_size * 8)
        where, reason = (file, FOREIGN) if file in SHARDS else (MANIFEST, CHANGED)
        yield Damage(f"one bit flipped in {kind(file)}", partial(_flip, file, bit), where, reason, note=f"{file} {bit}")


def accidents() -> Iterator[Damage]:
    """To one file, and to several."""
    for file in FILES:
        where, reason = (file, SIZE) if file in SHARDS else (MANIFEST, CHANGED)
        name = kind(file)
        yield Damage(f"{name} cut by a byte", _to(file, lambda path: _lengthen(path, -1)), where, reason)
        yield Damage(f"{name} longer by a byte", _to(file, lambda path: _lengthen(path, 1)), where, reason)
        yield Damage(f"{name} empty", _to(file, lambda path: os.truncate(path, 0)), where, reason)
        yield Damage(f"{name} missing", _to(file, Path.unlink), file, GONE)
        yield Damage(f"a folder in place of {name}", _to(file, lambda path: _replace(path, Path.mkdir)), file, LINK)
        yield Damage(f"a pipe in place of {name}", _to(file, lambda path: _replace(path, os.mkfifo)), file, LINK)
    first, second = SHARDS
    yield Damage("zeros in the middle of a shard", _to(first, _zero), first, FOREIGN)
    yield Damage("the shards of two ranks exchanged", lambda f, _: _exchange(f / first, f / second), first, FOREIGN)
    yield Damage("a shard of another rank", lambda f, _: shutil.copy(f / second, f / first), first, FOREIGN)
    yield Damage("a shard of another step", lambda f, o: _copy(o, f, first), first, FOREIGN)
    yield Damage("all shards of another step", lambda f, o: _copy(o, f, *SHARDS), first, FOREIGN)
    yield Damage("manifest of another step", lambda f, o: _copy(o, f, MANIFEST, HASH), MANIFEST, "holds step 1")
    yield Damage("manifest of another step, its hash of this", lambda f, o: _copy(o, f, MANIFEST), MANIFEST, CHANGED)
    yield Damage("nothing in the folder", lambda f, _: _replace(f, Path.mkdir), MANIFEST, GONE)
    yield Damage("an extra file", lambda f, _: (f / "core.123").write_bytes(bytes(99)), "", "", end="newest")


def links() -> Iterator[Damage]:
    """To what was there, outside of the checkpoint: the content is right."""
    for file in FILES:
        yield Damage(f"a link in place of {kind(file)}", _to(file, _move_and_link), file, LINK)
    yield Damage("a link in place of the step folder", lambda f, _: _move_and_link(f), "", "is a link in place of")
    to_itself = _to(SHARDS[0], lambda path: _replace(path, lambda p: p.symlink_to(p)))
    yield Damage("a link to itself in place of a shard", to_itself, SHARDS[0], LINK)


def _to(file: str, do: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    return lambda folder, _: do(folder / file)


def _lengthen(path: Path, count: int) -> None:
    os.truncate(path, path.stat().st_size + count)


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def _flip(file: str, bit: int, folder: Path, _: Path) -> None:
    content = bytearray((folder / file).read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    (folder / file).write_bytes(content)


def _zero(path: Path) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])


def _exchange(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def _copy(source: Path, target: Path, *names: str) -> None:
    for name in names:
        shutil.copy(source / name, target / name)


def _move_and_link(path: Path) -> None:
    elsewhere = path.parents[2] / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
