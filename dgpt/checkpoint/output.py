"""A new folder that is there whole or not at all, on a local disk or behind a URL."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import ENOSPC
from pathlib import Path

from dgpt.checkpoint import files
from dgpt.errors import UserError
from dgpt.storage import Place, RemotePath

Chunks = Iterator[bytes | memoryview]
Write = Callable[[str, Chunks], tuple[int, str]]  # a file's name in the folder, and its bytes -> size, sha256


def check_free(output: Place, step: int) -> None:
    """Raises UserError unless a checkpoint of `step` may get this name."""
    if output.exists():
        raise UserError(f"'{output}' exists already", rule="nothing is overwritten",
                        fix="name a new folder, or delete this one")  # fmt: skip
    if files.step_of(output) not in (None, step):
        raise UserError(f"'{output}' would hold step {step}", rule="a folder step_XXXXXXXX holds the step of its name",
                        fix=f"name it step_{step:08d}, or something else")  # fmt: skip


@contextmanager
def new_folder(output: Place, attempt: str, size: int) -> Iterator[Write]:
    """Gives a function that writes files; with the end of the block they are in `output`, else nothing is left of them.

    size: bytes that will be written, about. Behind a URL the files appear one by one: the caller writes the file that
    makes the folder whole last. Raises UserError if they cannot be written.
    """
    if isinstance(output, RemotePath):
        with _uploading(output) as write:
            yield write
        return
    temporary = output.with_name(f"{output.name}.tmp-{attempt}")
    try:
        temporary.mkdir(parents=True)
        if (free := shutil.disk_usage(temporary).free) < size:
            raise OSError(ENOSPC, f"{size:,} bytes are needed and {free:,} are free")
        yield lambda name, chunks: _write_local(temporary / name, chunks)
        for folder, _, _ in os.walk(temporary):
            files.sync_folder(Path(folder))
        temporary.rename(output)
        files.sync_folder(output.parent)
    except OSError as error:
        raise cannot_write(output, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cannot_write(output: Place, error: OSError) -> UserError:
    return UserError(f"'{output}' cannot be written: {error.strerror or error}",
                     rule="the folder above must be writable and its disk have room",
                     fix="give another folder, or make room")  # fmt: skip


def _write_local(path: Path, chunks: Chunks) -> tuple[int, str]:
    path.parent.mkdir(exist_ok=True)
    return files.write_hashed(path, chunks)


@contextmanager
def _uploading(output: RemotePath) -> Iterator[Write]:
    written: list[RemotePath] = []

    def write(name: str, chunks: Chunks) -> tuple[int, str]:
        written.append(output / name)
        return written[-1].write(chunks)

    try:
        yield write
    except BaseException:
        for path in written:
            with suppress(UserError):
                path.delete()
        raise
