"""After a commit, while training goes on: each rank reads its file back, and rank 0 deletes old checkpoints.

A save does not wait for this. What came back is in a rank's report of the next save, so that rank 0 hears of all files
without one more round. Until then the newest checkpoint that all ranks have read back stays, whatever `keep_last` says.
"""

from dgpt.checkpoint import files
from dgpt.checkpoint.format import FileEntry
from dgpt.checkpoint.job import Job, Outcome
from dgpt.checkpoint.layout import ReadBack
from dgpt.checkpoint.prune import prune


def after(job: Job, saved: Outcome) -> list[str]:
    """Runs in the writer thread of every rank. Returns what went wrong."""
    if saved.error or saved.file is None:
        return []
    return list(filter(None, [_read_back(job, saved.file), None if job.rank or saved.warning else _prune(job)]))


def _read_back(job: Job, file: FileEntry) -> str | None:
    ledger, error = job.ledger, _problem(job, file)
    ledger.own = ReadBack(step=job.step, error=error)
    ledger.wrong = ledger.wrong + 1 if error else 0
    if job.mesh.world_size == 1:
        ledger.learn(job.root, [ledger.own])
    return error and (f"CHECKPOINT DAMAGED at step {job.step}: {error}. Training goes on, and the checkpoint before it "
                      "is kept; look at the disk")  # fmt: skip


def _problem(job: Job, file: FileEntry) -> str | None:
    name = f"rank {job.rank}, {job.final.name}/{file.name}"
    try:
        if files.hash_on_disk(job.final / file.name) != file.sha256:
            return f"{name}: the disk gives back other bytes than were written"
    except Exception as error:
        return f"{name} cannot be read back: {error}"
    return None


def _prune(job: Job) -> str | None:
    try:
        if job.writer is None or job.writer.held():
            prune(job.root, job.step, job.keep_last, job.keep_every, job.attempt, spared=job.ledger.spared,
                  judge=job.ledger.judge)  # fmt: skip
    except Exception as error:
        return f"an old checkpoint could not be deleted: {error}"
    return None
