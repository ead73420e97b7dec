"""The end of a save: the checkpoint is there, each rank reads its file back, and what came back otherwise is withdrawn.

Ranks meet as for the commit, in a folder of its own, which rank 0 makes before the commit: who comes when rank 0 has
given up finds none, and does not wait. Each leaves there what it has read, and rank 0 decides. No checkpoint of another
step is deleted before. If a rank cannot say what it reads, the checkpoint stays, and so do those before it.
"""

import shutil
from contextlib import suppress

from dgpt.checkpoint import files
from dgpt.checkpoint.format import Strict
from dgpt.checkpoint.job import Job, Outcome
from dgpt.checkpoint.meet import await_decision, collect, report


class Proof(Strict):
    """What a rank found when it read its file back; nothing: what it had written."""

    damage: str | None = None  # it read other bytes, twice
    unread: str | None = None  # it could not read, which tells nothing of the checkpoint


def prove(job: Job, sha256: str) -> Outcome:
    """Runs in the writer thread of every rank, after the commit; returns when the outcome for all ranks is known."""
    try:
        own = _read_back(job, sha256)
        return _follow(job, own) if job.rank else _lead(job, own)
    except Exception as error:
        return Outcome(None, f"rank {job.rank} does not know whether {job.final.name} is whole: {error}")


def _read_back(job: Job, expected: str) -> Proof:
    name = f"rank {job.rank}: {job.final.name}/{job.file_name}"

    def alive() -> None:
        """No file of the checkpoint is touched: by now it may be in use by a job that has taken over."""
        with suppress(OSError):  # rank 0 has decided; or there is one rank only; or no room for a name: then it is late
            (job.proofs / job.file_name).touch()

    try:
        found = {files.hash_on_disk(job.final / job.file_name, alive)}
        if expected not in found:  # what is wrong on the disk is wrong again
            found.add(files.hash_on_disk(job.final / job.file_name, alive))
    except Exception as error:
        return Proof(unread=f"{name} cannot be read back, so that older checkpoints are kept: {error}")
    if expected in found:
        return Proof()
    return Proof(damage=f"{name}: the disk gives back other bytes than were written, with sha256 {' or '.join(found)} "
                        f"in place of {expected}")  # fmt: skip


def _follow(job: Job, own: Proof) -> Outcome:
    """Goes by what is there when rank 0 has decided."""
    if job.proofs.exists():
        report(job.proofs, job.rank, own.model_dump_json())
    decided = await_decision(job, job.proofs)
    if not job.committed:
        return Outcome(own.damage or "the file of another rank came back other than it was written")
    if not decided:
        return Outcome(None, f"rank 0 did not say whether {job.final.name} is whole")
    return Outcome(None, own.damage or own.unread)


def _lead(job: Job, own: Proof) -> Outcome:
    try:
        reports, late = collect(job, job.proofs, job.stall_seconds)
        proofs = [own, *map(Proof.model_validate_json, reports), Proof(unread=late or None)]
    except Exception as error:
        proofs = [own, Proof(unread=str(error))]
    damage, unread = ("; ".join(filter(None, (getattr(p, what) for p in proofs))) for what in ("damage", "unread"))
    if damage or unread:
        job.ledger.damaged[job.final] = damage or unread  # while it is there it neither counts nor goes
    if damage:
        _withdraw(job)
    with suppress(OSError):
        files.delete_folder(job.proofs, job.attempt)
    return Outcome(damage or None, unread or None)


def _withdraw(job: Job) -> None:
    """A job that has taken over, while this one was stopped, may have made the checkpoint that is there."""
    doomed = job.final.with_name(f"{job.folder.name}-withdrawn")
    with suppress(OSError):  # then it stays
        if job.writer is None or job.writer.held():
            job.final.rename(doomed)
            if not job.wrote(doomed):
                doomed.rename(job.final)
                return
            files.sync_folder(job.root)
            shutil.rmtree(doomed)
