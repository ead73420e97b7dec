"""What a preparation is: the settings and files that decide its bytes, so that a folder never mixes two of them."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpt.config import RunConfig
from dgpt.data.files import write_json, writing
from dgpt.data.shards import INDEX_FILE, read_index
from dgpt.data.sources import find_files, fingerprint, source_names
from dgpt.data.tokenizer import check_tokenizer_file
from dgpt.errors import UserError

WORK_FOLDER, PLAN_FILE = "prepare.work", "plan.json"
SMALLEST_UNIT, LARGEST_UNIT, UNITS = 512 << 10, 32 << 20, 8192  # bytes, bytes, about how many of a large corpus
STREAM_UNIT = 4 << 20  # bytes, where the size of a source is not known before


@dataclass(frozen=True)
class Preparation:
    """Sources found on this machine, and the identity of what comes out of them."""

    config: RunConfig
    names: list[str]  # of the sources
    files: list[list[Path]]  # of each source; none of a data set

    @property
    def folder(self) -> Path:
        return Path(self.config.data.path)

    @property
    def work(self) -> Path:
        return self.folder / WORK_FOLDER

    @property
    def disk_bytes(self) -> int:
        return sum(file.stat().st_size for files in self.files for file in files)

    @property
    def known_size(self) -> bool:
        return not any(source.dataset for source in self.config.data.sources)

    @property
    def unit_bytes(self) -> int:
        fitting = min(max(self.disk_bytes // UNITS, SMALLEST_UNIT), LARGEST_UNIT)
        return fitting if self.known_size else max(fitting, STREAM_UNIT)

    def identity(self) -> dict[str, Any]:
        """All that the prepared bytes depend on."""
        tokenizer = self.config.tokenizer.path
        prints = {f"files of {name}": fingerprint(files) for name, files in zip(self.names, self.files, strict=True)}
        if tokenizer:
            prints["files of the tokenizer"] = fingerprint([Path(tokenizer)])
        return settings_identity(self.config) | prints


def find_preparation(config: RunConfig) -> Preparation:
    """Look the sources up. Raises UserError where one has no documents, or the given tokenizer is not there."""
    check_tokenizer_file(config.tokenizer)
    return Preparation(config, source_names(config.data.sources), [find_files(s) for s in config.data.sources])


def settings_identity(config: RunConfig) -> dict[str, Any]:
    """The settings that the prepared bytes depend on, by dotted name."""
    data, tokenizer = config.data, config.tokenizer.model_dump(mode="json")
    identity: dict[str, Any] = {f"tokenizer.{key}": value for key, value in tokenizer.items()}
    identity |= {"data.val_fraction": data.val_fraction, "data.shard_tokens": data.shard_tokens}
    for number, source in enumerate(data.sources):
        kept = source.model_dump(mode="json", exclude={"weight", "streaming"})
        identity |= {f"data.sources[{number}].{key}": value for key, value in kept.items()}
    return identity


def is_complete(config: RunConfig) -> bool:
    """Whether data.path holds all of this preparation. Raises UserError where it holds another one.

    Sources that are not on this machine any more are taken as they were.
    """
    folder = Path(config.data.path)
    if not (folder / INDEX_FILE).exists():
        return False
    stored = read_index(folder)["preparation"]
    wanted = settings_identity(config)
    try:
        wanted = find_preparation(config).identity()
    except UserError:
        stored = {key: value for key, value in stored.items() if not key.startswith("files of ")}
    refuse_other(folder, stored, wanted)
    return True


def start_or_continue(job: Preparation) -> bool:
    """Note in the work folder what is being prepared; whether it had been begun. Raises UserError if that was other."""
    plan = job.work / PLAN_FILE
    if plan.exists():
        refuse_other(job.folder, json.loads(plan.read_bytes()), job.identity())
        for half_written in job.folder.rglob(".*.tmp"):
            half_written.unlink(missing_ok=True)
        return True
    for name in job.names:
        if any((job.folder / name).glob("*.bin")):
            raise UserError(f"data.path: '{job.folder / name}' holds shards of which no {INDEX_FILE} tells the origin",
                            rule="a preparation starts in a folder without shards",
                            fix="delete them, or set data.path to a new folder")  # fmt: skip
    with writing(job.work):
        shutil.rmtree(job.work, ignore_errors=True)
        job.work.mkdir(parents=True)
    write_json(plan, job.identity())
    return False


def refuse_other(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise UserError that lists the differences, if there are any."""
    keys = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    if keys:
        lines = "".join(f"\n    {key}: {stored.get(key)!r} there, {wanted.get(key)!r} now" for key in keys)
        raise UserError(f"data.path = '{folder}' holds another preparation:{lines}",
                        rule="one folder holds one preparation, of the same settings and unchanged source files",
                        fix="set data.path to a new folder, or delete this one")  # fmt: skip


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder against a second `dgpt prepare`; the kernel lets go of it however this process ends."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".prepare.lock", "w")  # noqa: SIM115  # held until the end
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"data.path = '{folder}' is being prepared by another process",
                            rule="one `dgpt prepare` at a time writes into a folder",
                            fix="wait for it, or choose another data.path") from None  # fmt: skip
        yield
