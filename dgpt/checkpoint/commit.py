"""The background half of a save: write this rank's file, report, and on rank 0 commit. Files only, no collectives.

All ranks write to one temporary folder. Each ends by writing a small report there. Rank 0 waits for all reports, then
writes the manifest and renames the folder; or, if one failed, deletes it. The others wait for the folder to disappear,
and see from the final name which of the two it was. A rank that dies leaves the rest waiting: they give up when
nothing in the folder has grown for `stall_seconds`.

Nobody but the holder of the run folder commits (dgpt.lease). A new holder first renames all temporary folders away; so
one that lost the lease either sees it when it asks, just before its rename, or finds nothing to rename.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from errno import ENOSPC
from hashlib import sha256
from pathlib import Path

import torch
from pydantic import ValidationError

import dgpt
from dgpt.checkpoint import files
from dgpt.checkpoint.format import FORMAT, MANIFEST, MANIFEST_HASH, FileEntry, Manifest
from dgpt.checkpoint.job import MAX_FAILURES, Job, Outcome
from dgpt.checkpoint.layout import Part, merge


def write_and_commit(job: Job, content: memoryview) -> Outcome:
    """Runs in the writer thread of every rank; returns when the outcome for all ranks is known.

    content: of this rank's file, header and all.
    """
    try:
        part = _write_part(job, content)
        outcome = _follow(job, part) if job.rank else _lead(job, part)
        return outcome._replace(file=part.file)
    except Exception as error:  # a file system that fails in the middle of a wait, no memory, no more threads
        return Outcome(f"rank {job.rank}: {error}")


def _follow(job: Job, part: Part) -> Outcome:
    """Ends with the others even if its own part failed: a rank that left early would wait for them in a collective."""
    with suppress(OSError):  # without a report rank 0 gives up by time
        files.write_whole(job.report_path(job.rank), part.model_dump_json().encode())
    problem = _await_commit(job)
    return Outcome(part.error or problem)


def _lead(job: Job, part: Part) -> Outcome:
    problem = _commit(job, part)
    return Outcome(None, problem) if problem and _committed(job) else Outcome(problem)


def _write_part(job: Job, content: memoryview) -> Part:
    path = job.folder / job.file_name
    try:
        if (wrong := job.ledger.wrong) >= MAX_FAILURES:
            raise OSError(f"the last {wrong} files came back from the disk other than they were written")
        job.folder.mkdir(parents=True, exist_ok=True)
        _check_space(job, len(content))
        size, digest = files.write_hashed(path, [content])
    except Exception as error:
        with suppress(OSError):
            path.unlink()  # on a full disk this makes room for the report
        reason = f"rank {job.rank} could not write {path.name}: {error}"
        return Part(rank=job.rank, error=reason, read_back=job.ledger.own)
    entry = FileEntry(name=path.name, size=size, sha256=digest, fragments=job.layout.table)
    return job.layout.part(job.rank, entry, job.ledger.own)


def _check_space(job: Job, size: int) -> None:
    """Raises OSError if the disk is too full for the files of all ranks, taken as alike: then nobody fills it."""
    free, total = shutil.disk_usage(job.folder).free, size * job.mesh.world_size
    if total <= free:  # the usual case, and no look at the files of all others
        return
    if (needed := total - _signs(job.folder)[0]) > free:
        raise OSError(ENOSPC, f"{needed:,} bytes are needed and {free:,} are free")


def _commit(job: Job, own: Part) -> str | None:
    try:
        parts = _collect(job, own)
        job.ledger.learn(job.root, [part.read_back for part in parts])
        errors = [part.error for part in parts if part.error]
        if not errors:
            _publish(job, parts)
            return None
        reason = "; ".join(errors)
    except Exception as error:
        reason = f"{own.error}; {error}" if own.error else str(error)
    with suppress(OSError):  # what cannot be deleted now is cleaned at the next start
        files.delete_folder(job.folder, job.attempt)
    return reason


def _collect(job: Job, own: Part) -> list[Part]:
    """The reports of all ranks, in order. Raises OSError when one is overdue, ValueError when one is unreadable."""
    paths = [job.report_path(rank) for rank in range(1, job.mesh.world_size)]
    missing = paths
    patience = min(job.stall_seconds, 10.0) if own.error else job.stall_seconds
    for _ in _patience(lambda: _signs(job.folder), patience):
        try:
            names = set(os.listdir(job.folder))
        except FileNotFoundError:
            raise OSError(own.error or f"{job.folder.name} was removed while it was written") from None
        missing = [path for path in paths if path.name not in names]
        if not missing:
            return [own, *(Part.model_validate_json(path.read_bytes()) for path in paths)]
        with suppress(OSError):
            os.utime(job.folder)  # a sign of life for the others
    late = ", ".join(path.stem.removeprefix("rank_").lstrip("0") for path in missing)
    raise OSError(f"no report from rank {late}, and {job.folder.name} has not grown for {patience:g} s")


def _publish(job: Job, parts: list[Part]) -> None:
    """Manifest last, then the rename that makes the checkpoint exist. Raises ValueError if coverage is not exact."""
    manifest = _manifest(job, parts)
    content = manifest.model_dump_json().encode()
    for part in parts:
        if part.file and files.opened_size(job.folder / part.file.name) != part.file.size:
            raise OSError(f"{part.file.name} does not have the {part.file.size} bytes that rank {part.rank} wrote")
        job.report_path(part.rank).unlink(missing_ok=True)
    files.write_whole(job.folder / MANIFEST, content)
    files.write_whole(job.folder / MANIFEST_HASH, f"{sha256(content).hexdigest()}  {MANIFEST}\n".encode())
    files.sync_folder(job.folder)
    if job.writer and not job.writer.held():
        raise OSError("this job may no longer be the one that writes to the run folder")
    job.ledger.committed(job.final, manifest)
    files.replace_folder(job.folder, job.final, job.attempt)


def _manifest(job: Job, parts: list[Part]) -> Manifest:
    states, tensors, entries = merge(parts)
    try:
        return Manifest(
            format=FORMAT,
            attempt=job.attempt,
            epoch=job.writer.epoch if job.writer else 0,
            created=datetime.now(UTC).replace(microsecond=0),
            seconds=round(time.monotonic() - job.begun, 3),
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
    for _ in _patience(lambda: _signs_of_rank_0(job), 2 * job.stall_seconds):
        if not job.folder.exists():
            return None if _committed(job) else "rank 0 could not complete it"
    return f"rank 0 did not commit {job.folder.name}"


def _committed(job: Job) -> bool:
    try:
        with files.open_regular(job.final / MANIFEST) as file:
            return f'"attempt":"{job.attempt}"'.encode() in file.read(200)
    except OSError:
        return False


def _patience(look: Callable[[], object], stall_seconds: float) -> Iterator[None]:
    """Yields at growing intervals (10 ms to 1 s), until what `look` sees has been the same for `stall_seconds`.

    It looks ten times in that span: with a thousand ranks a look at their files is expensive.
    """
    delay, seen, changed, looked = 0.01, look(), time.monotonic(), time.monotonic()
    while True:
        yield
        now = time.monotonic()
        if now - looked > stall_seconds / 10:
            looked, before, seen = now, seen, look()
            if seen != before:
                changed = now
            elif now - changed > stall_seconds:
                return
        time.sleep(delay)
        delay = min(delay * 1.5, 1.0)


def _signs_of_rank_0(job: Job) -> tuple[int, ...]:
    """It writes its own file first, and then touches the folder while it waits for reports."""
    with suppress(OSError):
        file = (job.folder / "rank_00000.safetensors").stat()
        return job.folder.stat().st_mtime_ns, file.st_mtime_ns, file.st_size
    return ()


def _signs(folder: Path) -> tuple[int, int]:
    """Of ranks that write: bytes, and when a file was last touched."""
    with suppress(OSError), os.scandir(folder) as entries:
        states = [entry.stat(follow_symlinks=False) for entry in entries]
        return sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)
    return 0, 0
