"""Files and folders of checkpoints: names, hashed writes, checked reads, renames that survive a crash."""

import hashlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from errno import EINVAL
from fcntl import F_GETFL, F_SETFL, fcntl
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, TypeVar, cast
from uuid import uuid4

from dgpt.checkpoint.hashed import HashedReader, piece_bytes
from dgpt.errors import StorageError, UserError
from dgpt.storage import Place, RemotePath

CHUNK_BYTES = 8 << 20
PAGE_BYTES = 4096
SYNC_BYTES = 1 << 30
FOLDER = "checkpoints"  # in the run folder
_STEP = re.compile(r"step_([0-9]{8,12})")
Somewhere = TypeVar("Somewhere", bound=Place)


def step_folder(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def step_of(folder: Place) -> int | None:
    """The step that a folder's name gives, None for any other name (temporary ones included)."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else None


def step_folders(root: Somewhere) -> list[Somewhere]:
    """Committed checkpoints in `root`, newest first; whether they are whole is not looked at. Raises StorageError."""
    try:
        if not root.is_dir():
            return []
        found = [folder for folder in root.iterdir() if step_of(folder) is not None]
    except OSError as error:
        raise unreadable(root, error) from None
    return cast(list[Somewhere], sorted(found, key=lambda folder: step_of(folder) or 0, reverse=True))


def unreadable(path: Place, error: OSError) -> StorageError:
    """Whether what is there is whole nobody knows."""
    return StorageError(
        f"'{path}' cannot be read on {platform.node()}: {error.strerror or error}",
        rule="a checkpoint is passed over as damaged if a file is missing or other than written, not if a disk fails",
        fix="mend the disk or the mount and start again; if the disk has lost it, move this checkpoint away",
    )


def write_hashed(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a new file, durably; returns its size and sha256. Each chunk is hashed while it is written.

    Nothing is copied, and a large chunk that begins at a page does not go through the page cache: what is there (the
    training data) stays there.
    """
    size, digest = 0, hashlib.sha256()
    with open(path, "xb") as file, ThreadPoolExecutor(1, thread_name_prefix="checkpoint-hash") as hasher:
        for chunk in chunks:
            hashed = hasher.submit(digest.update, chunk)
            _write(file, memoryview(chunk))
            hashed.result()
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _write(file: BinaryIO, data: memoryview) -> None:
    written = _write_directly(file, data) if len(data) > CHUNK_BYTES else 0
    for begin in range(written, len(data), SYNC_BYTES):
        part = data[begin : begin + SYNC_BYTES]
        for start in range(0, len(part), CHUNK_BYTES):
            file.write(part[start : start + CHUNK_BYTES])
        if len(part) == SYNC_BYTES:  # a long file is seen to grow, and not to stand still in one sync at its end
            file.flush()
            os.fdatasync(file.fileno())


def _write_directly(file: BinaryIO, data: memoryview) -> int:
    """Write whole pages past the page cache (O_DIRECT); returns the bytes written, 0 where that is not possible."""
    file.flush()
    start, end, flags = file.tell(), len(data) // PAGE_BYTES * PAGE_BYTES, fcntl(file, F_GETFL)
    try:
        fcntl(file, F_SETFL, flags | getattr(os, "O_DIRECT", 0))
        for begin in range(0, end, CHUNK_BYTES):  # a write larger than its buffer is not copied by `file`
            file.write(data[begin : min(begin + CHUNK_BYTES, end)])
    except OSError as error:
        if error.errno != EINVAL:  # so a file system says that it cannot, or not from this address
            raise
    finally:
        fcntl(file, F_SETFL, flags)
    return file.tell() - start


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file so that whoever sees its name sees all of it."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    write_hashed(partial, [content])
    partial.rename(path)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def regular_size(path: Place) -> int:
    """Size in bytes of a plain file. Raises OSError if it is missing, or a link, a folder or a device."""
    if isinstance(path, RemotePath):
        return path.size()
    status = path.lstat()
    if not S_ISREG(status.st_mode):
        raise OSError(f"'{path.name}' is not a plain file (links are not followed)")
    return status.st_size


def opened_size(path: Path) -> int:
    """Size in bytes of a file that another node has closed: NFS looks at the server anew when a file is opened."""
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def open_regular(path: Place) -> BinaryIO:
    """Open for reading, without following a link in the last place."""
    if isinstance(path, RemotePath):
        return path.open()
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW))


def hash_file(path: Place, advance: Callable[[int], None] = lambda _: None) -> str:
    """sha256 of a file; `advance` hears the bytes of each chunk."""
    with open_regular(path) as file:
        return HashedReader(file, piece_bytes(path), hashlib.sha256(), advance).hexdigest()


def hash_on_disk(path: Path, alive: Callable[[], None]) -> str:
    """sha256 of a file as the disk gives it back, where the system can forget it first; it does not stay in memory.

    alive: is called before the first byte, and then at each GiB.
    """
    with open_regular(path) as file:

        def forget(_: int = 0) -> None:
            """Drop what was read from the page cache; before anything was, the whole file."""
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, file.tell(), os.POSIX_FADV_DONTNEED)
            if file.tell() % SYNC_BYTES == 0:
                alive()

        forget()
        return HashedReader(file, piece_bytes(path), hashlib.sha256(), forget).hexdigest()


def replace_folder(new: Path, final: Path, attempt: str) -> None:
    """Give `new` the name `final`. After a crash at any point `clean` finds the old or the new one under that name."""
    old = final.with_name(f"{final.name}.old-{attempt}")
    if final.exists():
        final.rename(old)
    try:
        new.rename(final)
    except OSError:
        with suppress(OSError):
            old.rename(final)
        raise
    sync_folder(final.parent)
    with suppress(OSError):  # left for `clean`; the new checkpoint is there
        delete_folder(old, attempt)


def delete_folder(path: Path, attempt: str) -> None:
    """Rename away first: a half-deleted checkpoint never carries a checkpoint's name."""
    doomed = path.with_name(f"{path.name.partition('.')[0]}.tmp-deleted-{attempt}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    sync_folder(path.parent)
    shutil.rmtree(doomed)


def clean(root: Path) -> list[str]:
    """Remove what an earlier process left unfinished; bring back a checkpoint whose replacement did not arrive.

    Temporary folders are renamed first: should that process wake up, it finds nothing to commit. Returns the names of
    checkpoints that do not exist because their saves did not end. Raises UserError if it is not possible.
    """
    try:
        return _clean(root)
    except OSError as error:
        raise UserError(
            f"run_dir = '{root.parent}': what an earlier start left there cannot be removed: {error}",
            rule="a start removes unfinished checkpoints before it looks for whole ones",
            fix="make the folder writable for this user",
        ) from None


def _clean(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    names = set()
    for old in sorted(root.glob("step_*.old-*/")):
        final = old.with_name(old.name.partition(".")[0])
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(final)
    for unfinished in root.glob("step_*.tmp-*"):
        name, _, kind = unfinished.name.partition(".")
        doomed = unfinished.with_name(f"{name}.tmp-deleted-{uuid4().hex}")
        if not kind.startswith("tmp-deleted-") and not (root / name).exists():
            names.add(name)
        with suppress(FileNotFoundError):
            unfinished.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        with suppress(OSError):
            doomed.unlink(missing_ok=True)  # a file that stood where a checkpoint was to be
    return sorted(names)
