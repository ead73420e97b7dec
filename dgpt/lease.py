"""One writer for a run folder: a lease that lives as long as its holder shows signs of life, and fences off the rest.

The lease is a file run_dir/lock/<epoch>.json. To take it is to create the file of the next epoch, which succeeds for
one process only (O_EXCL), and to remove the file of the one before. The holder touches its file every few seconds; when
that fails because the file is gone, it has lost the lease. So a process that was stopped for minutes cannot mistake
itself for the holder: `held` asks the file system, and a checkpoint is committed only after it said yes.

The age of a sign of life is the difference of two times of the same file server: clocks of nodes are not compared.
Source of the idea: Kleppmann, How to do distributed locking, 2016 (fencing tokens).
"""

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from errno import EDQUOT, ENOSPC, EROFS, ESTALE
from pathlib import Path
from typing import Self
from uuid import uuid4

from dgpt.errors import UserError

FOLDER = "lock"
FULL = "free space; `dgpt checkpoint prune RUN --dry-run` names what may go: delete one of those folders, then prune"
WRITABLE = "make the folder writable for this user"
UNLOCKABLE = {ENOSPC: FULL, EDQUOT: FULL, EROFS: "mount the file system for writing"}
BEATS = 12  # signs of life in the time after which a holder counts as dead


@dataclass(frozen=True)
class Holder:
    """Who holds a run folder."""

    host: str
    boot: str  # of the machine, and the process namespace: what makes a pid mean something; empty if unknown
    pid: int
    started: int  # when the process began, in clock ticks after the boot: what makes a pid unique
    job: str  # of the scheduler, or empty
    stale_seconds: float  # it wants to be thought dead after so long a silence
    requeues: int = 0  # of the job, before it started this holder

    @classmethod
    def this(cls, job: str, stale_seconds: float, requeues: int = 0) -> "Holder":
        return cls(socket.gethostname(), _boot(), os.getpid(), _started(os.getpid()) or 0, job, stale_seconds, requeues)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + f" (job {self.job})" * bool(self.job)

    def precedes(self, other: "Holder") -> bool:
        """Whether the scheduler has taken the job from this holder's nodes, and started it again with the other."""
        return bool(self.job) and self.job == other.job and self.requeues < other.requeues

    @property
    def fate(self) -> bool | None:
        """Whether its process lives; None if that cannot be seen from here."""
        if not self.boot or self.boot != _boot() or not self.started:
            return None
        started = _started(self.pid)
        return _may_live(self.pid) if started is None else started == self.started


class Lease:
    """The right to write to a run folder. Use as a context: leaving it gives the folder free."""

    def __init__(self, path: Path, beat_seconds: float) -> None:
        self.path, self.epoch, self.lost = path, _epoch(path), False
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._live, args=(beat_seconds,), name="lease", daemon=True)
        self._beat.start()

    @classmethod
    def take(cls, run_dir: str | Path, job: str = "", *, requeues: int = 0, stale_seconds: float = 60.0) -> "Lease":
        """Wait until the folder is free, or its holder counts as dead; then it is ours.

        job, requeues: of the scheduler; what this job started before it was requeued counts as dead. stale_seconds:
        without a sign of life for so long, a holder counts as dead. Raises UserError that names the holder when it
        lives.
        """
        try:
            return cls(_take(run_dir, Holder.this(job, stale_seconds, requeues)), stale_seconds / BEATS)
        except OSError as error:
            raise UserError(f"run_dir = '{run_dir}' cannot be locked: {error}",
                            rule="a run makes a small file there, so that no other job writes to the folder",
                            fix=UNLOCKABLE.get(error.errno or 0, WRITABLE)) from None  # fmt: skip

    def held(self) -> bool:
        """Whether this is surely still the holder; asks the file system, and is a sign of life."""
        try:
            os.utime(self.path)
        except OSError as error:  # another error than these two is the file system's trouble, and may pass
            self.lost = self.lost or isinstance(error, FileNotFoundError) or error.errno == ESTALE
            return False
        return not self.lost

    def release(self) -> None:
        """Give the folder free. The epoch stays, so that the next one is higher."""
        self._ended.set()
        self._beat.join()
        with suppress(OSError):  # then it is free when it is stale
            self.path.rename(self.path.with_suffix(".free"))

    def _live(self, seconds: float) -> None:
        while not self.lost and not self._ended.wait(seconds):
            self.held()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holder(run_dir: str | Path) -> tuple[Holder, float] | None:
    """Who holds a run folder, and the seconds since its last sign of life; None if nobody does. Changes nothing."""
    folder = Path(run_dir) / FOLDER
    newest = _newest(folder) if folder.is_dir() else None
    if newest is None or newest.suffix != ".json":
        return None
    found, touched = _read(newest), _touched(newest)
    if found is None or touched is None:
        return None
    return found, max(0.0, time.time() - touched)


def _take(run_dir: str | Path, taker: Holder) -> Path:
    folder = Path(run_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        newest = _newest(folder)
        if newest and newest.suffix == ".json":
            _outlive(newest, run_dir, taker)
        path = folder / f"{(_epoch(newest) if newest else 0) + 1:08d}.json"
        if _create(path, taker):
            return path


def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """0 for the remains of a process that has ended; None if there is none to be seen."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = status.rpartition(")")[2].split()  # from field 3 of proc_pid_stat(5) on; the name before may hold anything
    return 0 if fields[0] in "ZX" else int(fields[19])


def _may_live(pid: int) -> bool | None:
    """False if there is no such process; None if it may be hidden: /proc can be mounted so for other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return None


def _epoch(path: Path) -> int:
    return int(path.stem)


def _newest(folder: Path) -> Path | None:
    """The file of the highest epoch: .json is held or was left by a dead holder, .free was given back."""
    found = [path for path in folder.iterdir() if path.suffix in (".json", ".free") and path.stem.isdecimal()]
    return max(found, key=_epoch, default=None)


def _create(path: Path, holder: Holder) -> bool:
    """Make the file of an epoch, and remove those before it. False if another process was first, or went past us."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump(asdict(holder), file)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)  # on a full disk an empty file would look like a holder
        raise
    for other in path.parent.iterdir():
        if other.stem.isdecimal() and _epoch(other) < _epoch(path):
            other.unlink(missing_ok=True)
    if _newest(path.parent) == path:
        return True
    path.unlink(missing_ok=True)
    return False


def _outlive(path: Path, run_dir: str | Path, taker: Holder) -> None:
    """Return when the holder counts as dead. Raises UserError when it lives.

    An old sign of life is not enough: after an outage of the file server the holder is the next to write. It must also
    be silent for a quarter of the time while it is watched.
    """
    first, since, told = _touched(path), time.monotonic(), False
    while (touched := _touched(path)) is not None:
        holder, age = _read(path), _file_server_time(path.parent) - touched
        stale = max(taker.stale_seconds, holder.stale_seconds if holder else 0)
        fate = holder.fate if holder else None
        if fate is False or (holder and holder.precedes(taker)):
            return
        if age > stale and time.monotonic() - since > stale / 4:
            return
        if touched != first or (fate and age < 3 * stale / BEATS):
            raise _in_use(run_dir, holder, age)
        if not told:
            told = True
            print(f"waiting: {run_dir} is held by {holder or 'a process that does not say who it is'}; without a sign "
                  f"of life for {stale:g} s it counts as dead", file=sys.stderr, flush=True)  # fmt: skip
        time.sleep(taker.stale_seconds / BEATS / 10)


def _in_use(run_dir: str | Path, holder: Holder | None, age: float) -> UserError:
    return UserError(
        f"run_dir = '{run_dir}' is in use by {holder or 'another process'}, which lived {max(age, 0):.0f} s ago",
        rule="one job at a time writes to a run folder",
        fix="stop that job or wait for its end, or give this run another run_dir",
    )


def _touched(path: Path) -> float | None:
    """Time of the last sign of life; None if the file is gone. NFS asks the server when a file is opened."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        return os.fstat(file.fileno()).st_mtime
    return None


def _read(path: Path) -> Holder | None:
    """None if the file is gone or not yet whole."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _file_server_time(folder: Path) -> float:
    probe = folder / f"probe-{uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
