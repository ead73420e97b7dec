"""Checksums of prepared data: all files on request, and at opening only those that changed since the last check."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dgpt.data.files import sha256_of, write_json
from dgpt.errors import UserError

STAMP_FILE = "verified.json"


def verify_changed(folder: Path, files: Mapping[str, Any], *, every: bool = False,
                   progress: Callable[[int], None] = lambda _: None) -> int:  # fmt: skip
    """Hash files whose size or time of change is not in the stamp, or `every` file; gives how many. Then stamp them.

    files: name -> {"bytes", "sha256"}. A flipped or cut file has another time of change; one on a disk that decays has
    not, which is what `dgpt prepare --verify` is for. Raises UserError with file, expected and found hash.
    """
    stamp = {} if every else _read_stamp(folder)
    changed = [name for name, record in files.items() if stamp.get(name) != _state(folder / name, record["sha256"])]
    for name in changed:
        _check(folder / name, files[name])
        progress(files[name]["bytes"])
    if changed:
        write_stamp(folder, files)
    return len(changed)


def write_stamp(folder: Path, files: Mapping[str, Any]) -> None:
    """Note that the files are as the index says now. A folder that cannot be written goes without."""
    if os.access(folder, os.W_OK):
        with suppress(UserError):  # another user's read-only mount: checked again next time
            write_json(folder / STAMP_FILE, {name: _state(folder / name, files[name]["sha256"]) for name in files})


def _check(path: Path, record: Mapping[str, Any]) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise UserError(f"data.path: file '{path}' cannot be read: {error.strerror}",
                        rule="all files that index.json lists are there and whole",
                        fix="copy it again, or prepare the data again into an empty folder") from None  # fmt: skip
    if found.sha256 != record["sha256"]:
        raise UserError(f"data.path: file '{path}' is corrupted: "
                        f"expected sha256 {record['sha256']}, found {found.sha256}",
                        rule="every file has the content that index.json recorded when it was written",
                        fix="copy it again, or prepare the data again into an empty folder")  # fmt: skip


def _read_stamp(folder: Path) -> dict[str, Any]:
    try:
        stamp = json.loads((folder / STAMP_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _state(path: Path, sha256: str) -> list[Any] | None:
    if not path.exists():
        return None
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, sha256]
