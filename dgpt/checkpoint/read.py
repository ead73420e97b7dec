"""Open a checkpoint folder: a manifest that is what was written, and files that are what it says."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, ValidationError

from dgpt.checkpoint import files
from dgpt.checkpoint.format import FORMAT, MANIFEST, MANIFEST_HASH, CheckpointError, FileEntry, Manifest
from dgpt.checkpoint.format import safetensors_header as header_of

MAX_MANIFEST_BYTES = 1 << 30
_OLDER = "use another checkpoint, or restore the file from a copy; `dgpt checkpoint verify FOLDER` lists every damage"


class _Version(BaseModel):
    format: int


def damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(path, reason, fix=_OLDER)


def read_manifest(folder: Path) -> Manifest:
    """Raises CheckpointError unless the manifest is unchanged since it was written and its fragments make a whole."""
    path = folder / MANIFEST
    content = _read(path)
    expected, found = _read(folder / MANIFEST_HASH), f"{sha256(content).hexdigest()}  {MANIFEST}\n".encode()
    if expected != found:
        raise damaged(path, f"expected the sha256 {expected[:64].decode(errors='replace')!r} of {MANIFEST_HASH}, "
                            f"found {found[:64].decode()!r}")  # fmt: skip
    manifest = _parse(path, content)
    named = files.step_of(folder)
    if named is not None and named != manifest.step:
        raise damaged(path, f"holds step {manifest.step}, but the folder is named {folder.name}")
    return manifest


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raises CheckpointError unless every file is there, plain, and as long as the manifest says."""
    for file in manifest.files:
        check_size(folder / file.name, file.size)


def check_size(path: Path, expected: int) -> None:
    try:
        found = files.regular_size(path)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None
    if found != expected:
        raise damaged(path, f"expected {expected} bytes, found {found}")


def check_hash(path: Path, expected: str, advance: Callable[[int], None] = lambda _: None) -> None:
    """Raises CheckpointError unless the file's sha256 is `expected`."""
    try:
        found = files.hash_file(path, advance)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None
    if found != expected:
        raise damaged(path, f"expected sha256 {expected}, found {found}")


def check_header(path: Path, file: FileEntry, manifest: Manifest) -> None:
    """Raises CheckpointError unless the file begins with exactly the header that the manifest implies."""
    expected = header_of(manifest.step, manifest.attempt, manifest.tensors, manifest.states, file.fragments)
    try:
        with files.open_regular(path) as opened:
            found = opened.read(len(expected))
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None
    if found != expected:
        raise damaged(path, "its header does not belong to this manifest (another step, or another run?)")


def problem_of(folder: Path) -> str | None:
    """Why a folder is no whole checkpoint as far as manifest and file sizes tell; None if it is."""
    try:
        check_sizes(folder, read_manifest(folder))
    except CheckpointError as error:
        return error.summary
    return None


def _read(path: Path) -> bytes:
    try:
        if (size := files.regular_size(path)) > MAX_MANIFEST_BYTES:
            raise damaged(path, f"{size} bytes are more than a manifest may have ({MAX_MANIFEST_BYTES})")
        with files.open_regular(path) as file:
            return file.read(MAX_MANIFEST_BYTES)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None


def _parse(path: Path, content: bytes) -> Manifest:
    try:
        version = _Version.model_validate_json(content).format
        if version != FORMAT:
            fix = "install the dgpt that wrote it, or a newer one"
            raise CheckpointError(path, f"format {version} is not known here (this dgpt reads {FORMAT})", fix=fix)
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise damaged(path, f"{place}: {message}" if place else message) from None
