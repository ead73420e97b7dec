"""The end of a save: the checkpoint is there, each rank reads its file back, and what came back otherwise is withdrawn.

Ranks meet as for the commit, in a folder of its own: each leaves there what it has read, and rank 0 decides. Nothing
old is deleted before. If a rank cannot say what it reads, the checkpoint stays, and so do those before it.
"""

import shutil
from contextlib import suppress

from dgpt.checkpoint import files
from dgpt.checkpoint.format import Strict
from dgpt.checkpoint.job import Job, Outcome
from dgpt.checkpoint.meet import await_decision, collect, report


class Proof(Strict):
    """What a rank found when it read its file back; nothing: what it had written."""

    damage: str | None = None  # it read other bytes
    unread: str | None = None  # it could not read, which tells nothing of the checkpoint


def open_proofs(job: Job) -> None:
    """On rank 0, before the commit. Who comes when rank 0 has given up finds no folder, and does not wait."""
    shutil.rmtree(job.proofs, ignore_errors=True)
    job.proofs.mkdir()


def prove(job: Job, committed: Outcome) -> Outcome:
    """Runs in the writer thread of every rank, after the commit; returns when the outcome for all ranks is known."""
    try:
        own = _read_back(job, committed.sha256)
        return _follow(job, own) if job.rank else _lead(job, own)
    except Exception as error:
        return _outcome(job, Proof(unread=f"rank {job.rank}: {error}"))


def _read_back(job: Job, expected: str) -> Proof:
    name = f"rank {job.rank}: {job.final.name}/{job.file_name}"
    try:
        found = files.hash_on_disk(job.final / job.file_name)
    except Exception as error:
        return Proof(unread=f"{name} cannot be read back, so that older checkpoints are kept: {error}")
    return Proof(damage=None if found == expected else f"{name}: the disk gives back other bytes than were written")


def _follow(job: Job, own: Proof) -> Outcome:
    with suppress(OSError):  # without a report rank 0 gives up by time
        report(job.proofs, job.rank, own.model_dump_json())
    decided = await_decision(job, job.proofs, job.final)
    return _outcome(job, own if decided else Proof(unread=f"rank 0 did not say whether {job.final.name} is whole"))


def _lead(job: Job, own: Proof) -> Outcome:
    try:
        proofs = [own, *map(Proof.model_validate_json, collect(job, job.proofs, job.final, job.stall_seconds))]
    except Exception as error:
        proofs = [own, Proof(unread=str(error))]
    damage, unread = ("; ".join(filter(None, (getattr(p, what) for p in proofs))) for what in ("damage", "unread"))
    if damage:
        _withdraw(job, damage)
    with suppress(OSError):
        files.delete_folder(job.proofs, job.attempt)
    return _outcome(job, Proof(damage=damage or None, unread=unread or None))


def _withdraw(job: Job, damage: str) -> None:
    job.ledger.damaged[job.final] = damage
    with suppress(OSError):  # then it stays, known as damaged
        if job.writer is None or job.writer.held():
            files.delete_folder(job.final, job.attempt)


def _outcome(job: Job, proof: Proof) -> Outcome:
    """All ranks go by what is there."""
    if job.committed:
        return Outcome(None, proof.damage or proof.unread)
    return Outcome(proof.damage or proof.unread or "a file of another rank came back other than it was written")
