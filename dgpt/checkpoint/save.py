"""Save without stalling: copy the state to host memory, go on training, write in the background."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from re import fullmatch
from typing import Any

import torch
from torch import Tensor

from dgpt.checkpoint import files
from dgpt.checkpoint.commit import write_and_commit
from dgpt.checkpoint.format import MeshEntry, Meta, safetensors_header
from dgpt.checkpoint.job import Job, Ledger, Outcome, Writer
from dgpt.checkpoint.layout import plan
from dgpt.checkpoint.proof import prove
from dgpt.checkpoint.prune import prune
from dgpt.errors import StorageError
from dgpt.fragments import Fragment
from dgpt.storage import Place

MAX_FAILURES = 3  # in a row
SIGN_SECONDS = 0.5


def _silent() -> None:
    pass


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _save(job: Job, content: memoryview) -> Outcome:
    committed, sha256 = write_and_commit(job, content)
    if committed.error:
        return committed
    proven = prove(job, sha256)
    warnings = filter(None, (committed.warning, proven.warning))
    return Outcome(proven.error, "; ".join(warnings) or None)


def _prune(job: Job, saved: Outcome) -> str | None:
    """On rank 0, after a save without any trouble: no rank waits for it. Returns what went wrong."""
    try:
        if saved == Outcome(None) and (job.writer is None or job.writer.held()):
            for folder in prune(job.root, job.step, job.keep_last, job.keep_every, job.attempt,
                                in_use=job.ledger.in_use, judge=job.ledger.judge):  # fmt: skip
                job.ledger.gone(folder)
    except Exception as error:
        return f"an old checkpoint could not be deleted: {error}"
    return None


class Checkpointer:
    """Writes the checkpoints of one rank of a run. Every rank makes one, and calls `save` at the same steps.

    Making it on rank 0 cleans up after a killed process: do so before `find_latest`, and let the other ranks wait.

    attempt: names this start of the job, the same on all ranks and different at each start (letters, digits, dashes).
    report: hears, on the main thread, what went wrong.
    alive: is called now and then while the main thread waits for a save.
    stall_seconds: a save in which no file grows for so long is given up.
    writer: on rank 0, the lease of the run folder: without it nothing is committed.
    """

    def __init__(
        self,
        run_dir: str | Path,
        rank: int,
        mesh: MeshEntry,
        attempt: str,
        *,
        keep_last: int = 3,
        keep_every: int = 0,
        report: Callable[[str], None] = _to_stderr,
        alive: Callable[[], None] = _silent,
        stall_seconds: float = 300.0,
        writer: Writer | None = None,
    ) -> None:
        if not fullmatch(r"[A-Za-z0-9-]{1,64}", attempt):
            raise ValueError(f"attempt = '{attempt}' is not 1 to 64 letters, digits and dashes")
        self.root = Path(run_dir) / files.FOLDER
        self.saved: list[int] = []  # the steps of this process's saves that have ended well
        self._writer = writer
        self._rank, self._mesh, self._attempt, self._stall_seconds = rank, mesh, attempt, stall_seconds
        self._keep_last, self._keep_every, self._report, self._alive = keep_last, keep_every, report, alive
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._running: tuple[int, Future[Outcome]] | None = None
        self._prunings: list[Future[str | None]] = []
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._ledger = Ledger()
        self._failures = 0
        self._error: str | None = None
        if rank == 0:
            files.clean(self.root)

    @property
    def saved_step(self) -> int | None:
        """Of the newest save of this process that has ended well."""
        return self.saved[-1] if self.saved else None

    def continues(self, folder: Place, damaged: Mapping[Place, str]) -> None:
        """This start of the run has loaded `folder`, which is never pruned, and none of those that are `damaged`."""
        self._ledger.in_use = folder
        self._ledger.damaged.update(damaged)

    def save(self, step: int, fragments: Iterable[Fragment], meta: Meta) -> None:
        """Copy the fragments and return; the rest happens in the background. Waits first if a save is running.

        After two failures in a row it waits for this save too. Raises StorageError, on all ranks, if it fails.
        """
        self.wait_for_save()
        begun = time.monotonic()
        layout, tensors = plan(fragments)
        header = safetensors_header(step, self._attempt, layout.tensors, layout.states, layout.table)
        content = self._copy(header, tensors, layout.payload_bytes)
        job = Job(self.root, step, self._attempt, self._rank, self._mesh, meta, layout, self._stall_seconds,
                  self._keep_last, self._keep_every, self._ledger, self._writer, begun)  # fmt: skip
        saving = self._thread.submit(_save, job, content)
        self._running = step, saving
        if self._rank == 0:
            self._prunings.append(self._thread.submit(lambda: _prune(job, saving.result())))
        if self._failures == MAX_FAILURES - 1:
            self.wait_for_save()

    def poll(self) -> None:
        """Report a save that has ended; cheap, for every step. Raises nothing: ranks may see it at different steps."""
        if self._running and self._running[1].done():
            self._settle()
        while self._prunings and self._prunings[0].done():
            self._settle_pruning()

    def wait(self, seconds: float = float("inf")) -> None:
        """Return when no save is running and nothing is deleted: `saved_step` tells what is on disk. Raises as `save`.

        After `seconds` it returns even so: when a peer is dead, its part may never come.
        """
        deadline = time.monotonic() + seconds
        if self._running and not self._await(self._running[1], deadline):
            return
        self.wait_for_save()
        while self._prunings and self._await(self._prunings[0], deadline):
            self._settle_pruning()

    def wait_for_save(self) -> None:
        """Return when no save is running, on all ranks at about the same time: none waits for deletions. As `wait`."""
        if self._running:
            self._await(self._running[1])
        self._settle()
        if self._failures >= MAX_FAILURES:
            fix = "free space or repair the disk, and start again: the run continues from its newest checkpoint"
            raise StorageError(f"'{self.root}': not saved, failure {self._failures} in a row: {self._error}",
                               rule="a run that cannot be saved does not go on", fix=fix)  # fmt: skip

    def _await(self, future: Future[Any], deadline: float = float("inf")) -> bool:
        while not wait([future], SIGN_SECONDS).done:
            self._alive()
            if time.monotonic() > deadline:
                return False
        return True

    def _settle_pruning(self) -> None:
        if warning := self._prunings.pop(0).result():
            self._report(warning)

    def _settle(self) -> None:
        if self._running is None:
            return
        (step, future), self._running = self._running, None
        self._error, warning = future.result()
        if warning:
            self._report(warning)
        if self._error is None:
            self._failures = 0
            self.saved.append(step)
            return
        self._failures += 1
        self._report(f"CHECKPOINT NOT SAVED at step {step} (failure {self._failures} in a row, the run stops at "
                     f"{MAX_FAILURES}): {self._error}")  # fmt: skip

    def _copy(self, header: bytes, tensors: list[Tensor], payload_bytes: int) -> memoryview:
        """The stall: the file as it will be, in a host buffer allocated at the first save and kept (pinned for GPUs).

        It begins at a page, as writing past the page cache wants it. There is room for a header with a longer step.
        """
        on_gpu, size = any(tensor.is_cuda for tensor in tensors), len(header) + payload_bytes
        if self._buffer.numel() < size + files.PAGE_BYTES:
            self._buffer = torch.empty(0, dtype=torch.uint8)  # free the old one first
            self._buffer = torch.empty(size + 2 * files.PAGE_BYTES, dtype=torch.uint8, pin_memory=on_gpu)
        content = self._buffer[-self._buffer.data_ptr() % files.PAGE_BYTES :][:size]
        content[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        offset = len(header)
        for tensor in tensors:
            place = content[offset : offset + tensor.nbytes]
            place.view(tensor.dtype).copy_(tensor, non_blocking=on_gpu)
            offset += tensor.nbytes
        if on_gpu:
            torch.cuda.synchronize()
        return content.numpy().data
