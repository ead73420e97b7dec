"""One save of one rank, and what a process has learned of the checkpoints of its run."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from dgpt.checkpoint import files
from dgpt.checkpoint.format import CheckpointError, FileEntry, Manifest, MeshEntry, Meta
from dgpt.checkpoint.layout import Layout, ReadBack
from dgpt.checkpoint.read import check_size, read_manifest
from dgpt.storage import Place

MAX_FAILURES = 3  # in a row


class Writer(Protocol):
    """The right to commit (dgpt.lease.Lease)."""

    epoch: int

    def held(self) -> bool: ...


@dataclass
class Ledger:
    """What this process knows of the checkpoints of its run. Only the thread that writes them uses it in a run."""

    in_use: Place | None = None  # from which this start of the run continued
    damaged: dict[Place, str] = field(default_factory=dict)  # and why
    sizes: dict[Path, dict[str, int]] = field(default_factory=dict)  # of the files, where the manifest was seen
    proven: Path | None = None  # the newest one that all ranks have read back
    own: ReadBack | None = None  # this rank's file of the newest checkpoint
    wrong: int = 0  # how often in a row it came back otherwise

    @property
    def spared(self) -> tuple[Place | None, ...]:
        """What is not deleted: of newer ones nobody knows yet whether they are good."""
        return self.in_use, self.proven

    def committed(self, folder: Path, manifest: Manifest) -> None:
        self.damaged.pop(folder, None)
        self._see(folder, manifest)

    def judge(self, folder: Path) -> str | None:
        """What is wrong with a checkpoint, None if nothing. A manifest, which may be long, is read only once."""
        if folder in self.damaged:
            return self.damaged[folder]
        try:
            if folder not in self.sizes:
                self._see(folder, read_manifest(folder))
            for name, size in self.sizes[folder].items():
                check_size(folder / name, size)
        except CheckpointError as error:
            return error.summary
        return None

    def learn(self, root: Path, reports: list[ReadBack | None]) -> None:
        """What all ranks have read back; on rank 0."""
        for report in filter(None, reports):
            if report.error:
                self.damaged[files.step_folder(root, report.step)] = report.error
        if reports[0] and not reports[0].error and all(report == reports[0] for report in reports):
            self.proven = files.step_folder(root, reports[0].step)

    def _see(self, folder: Path, manifest: Manifest) -> None:
        self.sizes[folder] = {file.name: file.size for file in manifest.files}


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
    ledger: Ledger = field(default_factory=Ledger)
    writer: Writer | None = None  # of rank 0
    begun: float = field(default_factory=time.monotonic)  # seconds

    @property
    def final(self) -> Path:
        return files.step_folder(self.root, self.step)

    @property
    def folder(self) -> Path:
        return self.final.with_name(f"{self.final.name}.tmp-{self.attempt}")

    @property
    def file_name(self) -> str:
        return f"rank_{self.rank:05d}.safetensors"

    def report_path(self, rank: int) -> Path:
        return self.folder / f"rank_{rank:05d}.json"


class Outcome(NamedTuple):
    error: str | None  # why the checkpoint does not exist; None: it is committed
    warning: str | None = None
    file: FileEntry | None = None  # this rank's
