"""One save of one rank, and what a process knows of the checkpoints of its run."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from dgpt.checkpoint import files
from dgpt.checkpoint.format import MANIFEST, CheckpointError, Manifest, MeshEntry, Meta
from dgpt.checkpoint.layout import Layout
from dgpt.checkpoint.read import check_size, read_manifest
from dgpt.storage import Place


class Writer(Protocol):
    """The right to commit (dgpt.lease.Lease)."""

    epoch: int

    def held(self) -> bool: ...


@dataclass
class Ledger:
    """What this process knows of the checkpoints of its run; after the start only the writer thread uses it."""

    in_use: Place | None = None  # from which this start of the run continued
    damaged: dict[Place, str] = field(default_factory=dict)  # or not known to be whole, and why
    sizes: dict[Path, dict[str, int]] = field(default_factory=dict)  # of the files, where a manifest was seen

    def committed(self, folder: Path, manifest: Manifest) -> None:
        self.damaged.pop(folder, None)
        self._see(folder, manifest)

    def gone(self, folder: Path) -> None:
        self.sizes.pop(folder, None)

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
        """Where all ranks write, until the commit gives it the final name."""
        return self.final.with_name(f"{self.final.name}.tmp-{self.attempt}")

    @property
    def proofs(self) -> Path:
        """Where they say what they have read back. It is there from just before the commit until rank 0 has decided."""
        return self.final.with_name(f"{self.folder.name}-proofs")

    @property
    def file_name(self) -> str:
        return f"rank_{self.rank:05d}.safetensors"

    @property
    def committed(self) -> bool:
        """Whether the checkpoint is there and of this save. Looks again if it cannot see; raises OSError as `wrote`."""
        with suppress(OSError):
            return self.wrote(self.final)
        return self.wrote(self.final)

    def wrote(self, folder: Path) -> bool:
        """Whether this save made a checkpoint. Raises OSError if a disk or a network leaves that open."""
        try:
            with files.open_regular(folder / MANIFEST) as file:
                return f'"attempt":"{self.attempt}"'.encode() in file.read(200)
        except (FileNotFoundError, NotADirectoryError):
            return False


class Outcome(NamedTuple):
    error: str | None  # why the checkpoint does not exist; None: it is there
    warning: str | None = None
