"""The background half of a save: write this rank's file, report, and on rank 0 commit. Files only, no collectives.

All ranks write to one temporary folder. Each ends by writing a small report there. Rank 0 waits for all reports, then
writes the manifest and renames the folder; or, if one failed, deletes it. The others wait for the folder to disappear,
and see from the final name which of the two it was. A rank that dies leaves the rest waiting: they give up when
nothing in the folder has grown for `stall_seconds`.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError

import dgpt
from dgpt.checkpoint import files
from dgpt.checkpoint.format import (
    FORMAT,
    MANIFEST,
    MANIFEST_HASH,
    FileEntry,
    Manifest,
    MeshEntry,
    Meta,
    safetensors_header,
)
from dgpt.checkpoint.layout import Layout, Part, merge
from dgpt.checkpoint.prune import prune


@dataclass(frozen=True)
class Job:
    """One save of one rank."""

    root: Path  # run_dir/checkpoints
    step: int
    attempt: str
    rank: int
    mesh: MeshEntry
    meta: Meta
    layout: Layout
    stall_seconds: float
    keep_last: int
    keep_every: int

    @property
    def final(self) -> Path:
        return files.step_folder(self.root, self.step)

    @property
    def folder(self) -> Path:
        return self.final.with_name(f"{self.final.name}.tmp-{self.attempt}")

    def report_path(self, rank: int) -> Path:
        return self.folder / f"rank_{rank:05d}.json"


class Outcome(NamedTuple):
    error: str | None  # why the checkpoint does not exist; None: it is committed
    warning: str | None = None


def write_and_commit(job: Job, payload: memoryview) -> Outcome:
    """Runs in the writer thread of every rank; returns when the outcome for all ranks is known."""
    part = _write_part(job, payload)
    with suppress(OSError):  # without a report the others give up by time
        files.write_whole(job.report_path(job.rank), part.model_dump_json().encode())
    if job.rank > 0:
        return Outcome(part.error or _await_commit(job))
    error = _commit(job, part)
    return Outcome(error, None if error else _prune(job))


def _prune(job: Job) -> str | None:
    try:
        prune(job.root, job.step, job.keep_last, job.keep_every, job.attempt)
    except OSError as error:
        return f"an old checkpoint could not be deleted: {error}"
    return None


def _write_part(job: Job, payload: memoryview) -> Part:
    path, layout = job.folder / f"rank_{job.rank:05d}.safetensors", job.layout
    header = safetensors_header(job.step, job.attempt, layout.tensors, layout.states, layout.table)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        size, digest = files.write_hashed(path, [header, payload])
    except OSError as error:
        with suppress(OSError):
            path.unlink()  # on a full disk this makes room for the report
        return Part(rank=job.rank, error=f"rank {job.rank} could not write {path.name}: {error}")
    entry = FileEntry(name=path.name, size=size, sha256=digest, fragments=layout.table)
    return Part(rank=job.rank, states=layout.states, tensors=layout.tensors, file=entry)


def _commit(job: Job, own: Part) -> str | None:
    try:
        parts = _collect(job, own)
        errors = [part.error for part in parts if part.error]
        if not errors:
            _publish(job, parts)
            return None
        reason = "; ".join(errors)
    except (OSError, ValueError) as error:
        reason = own.error or str(error)
    with suppress(OSError):  # what cannot be deleted now is cleaned at the next start
        files.delete_folder(job.folder, job.attempt)
    return reason


def _collect(job: Job, own: Part) -> list[Part]:
    """The reports of all ranks, in order. Raises OSError when one is overdue, ValueError when one is unreadable."""
    missing = set(range(job.mesh.world_size))
    for _ in _patience(job.folder, job.stall_seconds):
        missing = {rank for rank in missing if not job.report_path(rank).exists()}
        if own.error and job.rank in missing:
            raise OSError(own.error)
        if not missing:
            return [Part.model_validate_json(job.report_path(r).read_bytes()) for r in range(job.mesh.world_size)]
    raise OSError(f"no report from rank {', '.join(map(str, sorted(missing)))}, and {job.folder.name} has not grown "
                  f"for {job.stall_seconds:g} s")  # fmt: skip


def _publish(job: Job, parts: list[Part]) -> None:
    """Manifest last, then the rename that makes the checkpoint exist. Raises ValueError if coverage is not exact."""
    content = _manifest(job, parts).model_dump_json().encode()
    for part in parts:
        if part.file and files.opened_size(job.folder / part.file.name) != part.file.size:
            raise OSError(f"{part.file.name} does not have the {part.file.size} bytes that rank {part.rank} wrote")
        job.report_path(part.rank).unlink()
    files.write_whole(job.folder / MANIFEST, content)
    files.write_whole(job.folder / MANIFEST_HASH, f"{sha256(content).hexdigest()}  {MANIFEST}\n".encode())
    files.sync_folder(job.folder)
    files.replace_folder(job.folder, job.final, job.attempt)


def _manifest(job: Job, parts: list[Part]) -> Manifest:
    states, tensors, entries = merge(parts)
    try:
        return Manifest(
            format=FORMAT,
            attempt=job.attempt,
            created=datetime.now(UTC).replace(microsecond=0),
            dgpt=dgpt.__version__,
            torch=torch.__version__,
            step=job.step,
            mesh=job.mesh,
            meta=job.meta,
            states=states,
            tensors=tensors,
            files=entries,
        )
    except ValidationError as error:
        raise ValueError(f"the ranks' fragments do not make a whole: {error.errors()[0]['msg']}") from None


def _await_commit(job: Job) -> str | None:
    """Wait until rank 0 has renamed or deleted the temporary folder. It gives up first, hence twice its patience."""
    for _ in _patience(job.folder, 2 * job.stall_seconds):
        if not job.folder.exists():
            return None if _committed(job) else "rank 0 could not complete it"
    return f"rank 0 did not commit {job.folder.name}"


def _committed(job: Job) -> bool:
    try:
        with files.open_regular(job.final / MANIFEST) as file:
            return f'"attempt":"{job.attempt}"'.encode() in file.read(200)
    except OSError:
        return False


def _patience(folder: Path, stall_seconds: float) -> Iterator[None]:
    """Yields at growing intervals (10 ms to 1 s), until nothing in `folder` has changed for `stall_seconds`."""
    delay, seen, since = 0.01, -1, time.monotonic()
    while True:
        yield
        size = _bytes_in(folder)
        if size != seen:
            seen, since = size, time.monotonic()
        elif time.monotonic() - since > stall_seconds:
            return
        time.sleep(delay)
        delay = min(delay * 1.5, 1.0)


def _bytes_in(folder: Path) -> int:
    with suppress(OSError), os.scandir(folder) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size + 1 for entry in entries)
    return 0
