"""Open a checkpoint folder: a manifest that is what was written, and files that are what it says."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from errno import EISDIR, ELOOP, ENOENT, ENOTDIR
from hashlib import sha256
from pathlib import Path
from re import fullmatch

from pydantic import BaseModel, ValidationError

from dgpt.checkpoint import files
from dgpt.checkpoint.format import FORMAT, MANIFEST, MANIFEST_HASH, CheckpointError, FileEntry, Manifest
from dgpt.checkpoint.format import safetensors_header as header_of
from dgpt.errors import StorageError
from dgpt.storage import Place, RemotePath

MAX_MANIFEST_BYTES = 1 << 30
GONE = (None, ENOENT, ENOTDIR, EISDIR, ELOOP)  # errno; None: as dgpt says it
RESTORE = "use another checkpoint, or restore the file from a copy"


class _Version(BaseModel):
    format: int


def damaged(path: Place, reason: str) -> CheckpointError:
    return CheckpointError(path, reason, fix=f"{RESTORE}; `dgpt checkpoint verify FOLDER` lists every damage")


def problem(path: Place, error: OSError) -> CheckpointError | StorageError:
    """Damage, if the file is gone or is no file; a disk or a network that fails tells nothing of the checkpoint."""
    return damaged(path, error.strerror or str(error)) if error.errno in GONE else files.unreadable(path, error)


def read_manifest(folder: Place) -> Manifest:
    """Raises CheckpointError unless the manifest is unchanged since it was written and its fragments make a whole."""
    path, named = folder / MANIFEST, files.step_of(folder)
    if named is not None and isinstance(folder, Path) and folder.is_symlink():
        raise damaged(folder, "is a link in place of the folder (links are not followed)")
    content = _read(path)
    hashed = fullmatch(rb"([0-9a-f]{64})  manifest\.json\n", _read(folder / MANIFEST_HASH))
    if hashed is None:
        raise damaged(path, f"expected the sha256 of it in {MANIFEST_HASH}, found something else there")
    if (expected := hashed[1].decode()) != (found := sha256(content).hexdigest()):
        raise damaged(path, f"expected the sha256 {expected} of {MANIFEST_HASH}, found {found}")
    manifest = _parse(path, content)
    if named is not None and named != manifest.step:
        raise damaged(path, f"holds step {manifest.step}, but the folder is named {folder.name}")
    return manifest


def check_sizes(folder: Place, manifest: Manifest) -> None:
    """Raises CheckpointError unless every file is there, plain, and as long as the manifest says."""
    threads = 16 if isinstance(folder, RemotePath) else 1  # a store takes its time for each answer
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda file: check_size(folder / file.name, file.size), manifest.files))


def check_size(path: Place, expected: int) -> None:
    try:
        found = files.regular_size(path)
    except OSError as error:
        raise problem(path, error) from None
    if found != expected:
        raise damaged(path, f"expected {expected} bytes, found {found}")


def check_hash(path: Place, expected: str, advance: Callable[[int], None] = lambda _: None) -> None:
    """Raises CheckpointError unless the file's sha256 is `expected`."""
    try:
        found = files.hash_file(path, advance)
    except OSError as error:
        raise problem(path, error) from None
    check_digest(path, expected, found)


def check_digest(path: Place, expected: str, found: str) -> None:
    if found != expected:
        raise damaged(path, f"expected sha256 {expected}, found {found}")


def check_header(path: Place, file: FileEntry, manifest: Manifest) -> None:
    """Raises CheckpointError unless the file begins with exactly the header that the manifest implies."""
    expected = header_of(manifest.step, manifest.attempt, manifest.tensors, manifest.states, file.fragments)
    try:
        with files.open_regular(path) as opened:
            found = opened.read(len(expected))
    except OSError as error:
        raise problem(path, error) from None
    if found != expected:
        raise damaged(path, "its header does not belong to this manifest (another step, or another run?)")


def problem_of(folder: Place) -> str | None:
    """Why a folder is no whole checkpoint as far as manifest and file sizes tell; None if it is."""
    try:
        check_sizes(folder, read_manifest(folder))
    except CheckpointError as error:
        return error.summary
    return None


def _read(path: Place) -> bytes:
    try:
        if (size := files.regular_size(path)) > MAX_MANIFEST_BYTES:
            raise damaged(path, f"{size} bytes are more than a manifest may have ({MAX_MANIFEST_BYTES})")
        with files.open_regular(path) as file:
            return file.read(MAX_MANIFEST_BYTES)
    except OSError as error:
        raise problem(path, error) from None


def _parse(path: Place, content: bytes) -> Manifest:
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
