"""The background half of a save: write this rank's file, report, and on rank 0 commit. Files only, no collectives.

All ranks write to one temporary folder. Each ends by writing a small report there. Rank 0 waits for all reports, then
writes the manifest and renames the folder; or, if one failed, deletes it. The others wait for the folder to disappear,
and see from the final name which of the two it was. A rank that dies leaves the rest waiting: rank 0 gives up when
nothing in the folder has grown for `stall_seconds`, the others after twice that.

Nobody but the holder of the run folder commits (dgpt.lease). A new holder first renames all temporary folders away; so
one that lost the lease either sees it when it asks, just before its rename, or finds nothing to rename.
"""

import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime
from errno import ENOSPC
from hashlib import sha256

import torch
from pydantic import ValidationError

import dgpt
from dgpt.checkpoint import files
from dgpt.checkpoint.format import FORMAT, MANIFEST, MANIFEST_HASH, FileEntry, Manifest
from dgpt.checkpoint.job import Job, Outcome
from dgpt.checkpoint.layout import Part, merge
from dgpt.checkpoint.meet import await_decision, collect, report, report_path, signs


def write_and_commit(job: Job, content: memoryview) -> tuple[Outcome, str]:
    """Runs in the writer thread of every rank; returns when the outcome for all ranks is known.

    content: of this rank's file, header and all. Returns the sha256 of it, too.
    """
    part = Part(rank=job.rank)
    try:
        part = _write_part(job, content)
        return (_follow if job.rank else _lead)(job, part), part.sha256
    except Exception as error:  # a file system that fails in the middle of a wait, no memory, no more threads
        return Outcome(f"rank {job.rank}: {error}"), part.sha256


def _follow(job: Job, part: Part) -> Outcome:
    """Ends with the others even if its own part failed: a rank that left early would wait for them in a collective."""
    report(job.folder, job.rank, part.model_dump_json())
    decided = await_decision(job, job.folder)
    if decided and job.committed:
        return Outcome(part.error)
    reason = "rank 0 could not complete it" if decided else f"rank 0 did not commit {job.folder.name}"
    return Outcome(part.error or reason)


def _lead(job: Job, part: Part) -> Outcome:
    problem = _commit(job, part)
    if problem is None:
        return Outcome(None)
    try:
        if job.committed:
            return Outcome(None, problem)
    except OSError as error:
        problem = f"{problem}; nor can be seen whether {job.final.name} is there: {error}"
        job.ledger.damaged[job.final] = problem  # should it be, it neither counts nor goes
    _abandon(job)
    return Outcome(problem)


def _write_part(job: Job, content: memoryview) -> Part:
    path = job.folder / job.file_name
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        _check_space(job, len(content))
        size, digest = files.write_hashed(path, [content])
    except Exception as error:
        with suppress(OSError):
            path.unlink()  # on a full disk this makes room for the report
        return Part(rank=job.rank, error=f"rank {job.rank} could not write {path.name}: {error}")
    return job.layout.part(job.rank, FileEntry(name=path.name, size=size, sha256=digest, fragments=job.layout.table))


def _check_space(job: Job, size: int) -> None:
    """Raises OSError if the disk is too full for the files of all ranks, taken as alike: then nobody fills it."""
    free, total = shutil.disk_usage(job.folder).free, size * job.mesh.world_size
    if total <= free:  # the usual case, and no look at the files of all others
        return
    if (needed := total - signs(job.folder)[0]) > free:
        raise OSError(ENOSPC, f"{needed:,} bytes are needed and {free:,} are free")


def _commit(job: Job, own: Part) -> str | None:
    patience = min(job.stall_seconds, 10.0) if own.error else job.stall_seconds
    try:
        reports, late = collect(job, job.folder, patience)
        if late:
            raise OSError(late)
        parts = [own, *map(Part.model_validate_json, reports)]
        errors = [part.error for part in parts if part.error]
        if not errors:
            _publish(job, parts)
            return None
        reason = "; ".join(errors)
    except Exception as error:
        reason = f"{own.error}; {error}" if own.error else str(error)
    return reason


def _abandon(job: Job) -> None:
    """Nobody is to wait for a decision. What cannot be deleted now is cleaned at the next start."""
    for folder in (job.folder, job.proofs):
        with suppress(OSError):
            files.delete_folder(folder, job.attempt)


def _publish(job: Job, parts: list[Part]) -> None:
    """Manifest last, then the rename that makes the checkpoint exist. Raises ValueError if coverage is not exact."""
    manifest = _manifest(job, parts)
    content = manifest.model_dump_json().encode()
    for part in parts:
        if part.file and files.opened_size(job.folder / part.file.name) != part.file.size:
            raise OSError(f"{part.file.name} does not have the {part.file.size} bytes that rank {part.rank} wrote")
        report_path(job.folder, part.rank).unlink(missing_ok=True)
    files.write_whole(job.folder / MANIFEST, content)
    files.write_whole(job.folder / MANIFEST_HASH, f"{sha256(content).hexdigest()}  {MANIFEST}\n".encode())
    files.sync_folder(job.folder)
    if job.mesh.world_size > 1:
        job.proofs.mkdir()
    if job.writer and not job.writer.held():
        raise OSError("this job may no longer be the one that writes to the run folder")
    try:
        files.replace_folder(job.folder, job.final, job.attempt)
    finally:  # it may fail after the rename
        if job.committed:
            job.ledger.committed(job.final, manifest)


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
