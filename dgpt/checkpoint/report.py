"""What is in a run's checkpoints, for people: list, verify, show."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from dgpt.checkpoint.files import FOLDER, step_folders, step_of
from dgpt.checkpoint.format import MANIFEST, MANIFEST_HASH, CheckpointError, FileEntry, Manifest
from dgpt.checkpoint.progress import Advance, byte_bar
from dgpt.checkpoint.read import RESTORE, check_hash, check_header, check_size, check_sizes, read_manifest
from dgpt.config import flat
from dgpt.errors import UserError
from dgpt.storage import Place, place

BESIDE = ("config.toml", "tokenizer")  # what an export holds beside the checkpoint
THREADS = 4


@dataclass(frozen=True)
class Row:
    """One line of `dgpt checkpoint list`; what only the manifest knows is None where that cannot be read."""

    folder: Place
    step: int
    tokens: int | None
    loss: float | None
    bytes: int | None
    age_seconds: float | None
    problem: str | None  # None: manifest and file sizes are right (`verify` checks the hashes)


@dataclass(frozen=True)
class Problem:
    """Why a checkpoint is not whole, and what to do about it; a line each."""

    summary: str
    fix: str

    @classmethod
    def of(cls, error: CheckpointError) -> "Problem":
        return cls(error.summary, RESTORE if error.fix.startswith(RESTORE) else error.fix)


def list_checkpoints(run_dir: str | Place) -> list[Row]:
    """The checkpoints of a run, oldest first."""
    return [_row(folder) for folder in all_checkpoints(run_dir)]


def all_checkpoints(run_dir: str | Place) -> Sequence[Place]:
    """Their folders, oldest first, damaged ones too."""
    root = place(run_dir) / FOLDER
    return step_folders(root)[::-1]


def verify(folder: str | Place, *, progress: bool = False) -> list[str]:
    """Read every byte; returns the problems, none if the checkpoint is whole. progress: a bar on stderr."""
    (problems,) = inspect([place(folder)], progress=progress).values()
    return [problem.summary for problem in problems]


def damage_of(folder: Place, *, progress: bool = False) -> str | None:
    """Read every byte; the first thing that is wrong with the checkpoint. A file more in the folder is no damage."""
    (problems,) = inspect([folder], progress=progress, strangers=False).values()
    return problems[0].summary if problems else None


def inspect(folders: Sequence[Place], *, progress: bool = False, strangers: bool = True) -> dict[Place, list[Problem]]:
    """`verify` for several checkpoints, with a fix for each problem. strangers: name files that do not belong there."""
    problems: dict[Place, list[Problem]] = {folder: [] for folder in folders}
    manifests: dict[Place, Manifest] = {}
    for folder in folders:
        try:
            manifests[folder] = read_manifest(folder)
        except CheckpointError as error:
            problems[folder].append(Problem.of(error))
    title = f"verifying {folders[0].name}" if len(folders) == 1 else f"verifying {len(folders)} checkpoints"
    total = sum(manifest.bytes for manifest in manifests.values())
    with byte_bar(title, total, enabled=progress) as advance:
        for folder, manifest in manifests.items():
            problems[folder] = [
                *(_strangers(folder, manifest) if strangers else ()),
                *_damages(folder, manifest, advance),
            ]
    gone = [folder for folder in folders if len(folders) > 1 and not folder.is_dir()]  # a run that goes on deletes
    return {folder: found for folder, found in problems.items() if folder not in gone}


def show(folder: str | Place) -> str:
    """Progress, topology, sizes, tensors and settings of a checkpoint as text, and whether all its files are there.

    Raises CheckpointError if the manifest is damaged.
    """
    folder = place(folder)
    m = read_manifest(folder)
    mesh, meta = m.mesh, m.meta
    elements = sum(t.part_numel * t.tp_size for t in m.tensors)
    lines = [
        f"{folder}",
        f"step {m.step}, {meta.tokens:,} tokens, {meta.samples:,} samples, loss {meta.loss}",
        "NOT WHOLE: " + problem if (problem := _problem(folder, m)) else "whole, by the sizes of its files",
        f"written {m.created} by dgpt {m.dgpt}, torch {m.torch}; format {m.format}",
        f"topology: {mesh.world_size} ranks = dp {mesh.dp_size} x tp {mesh.tp}, ZeRO {mesh.zero_stage}",
        f"data {meta.data_hash}, tokenizer {meta.tokenizer_hash}",
        f"{len(m.files)} files, {m.bytes:,} bytes; {len(m.tensors)} tensors, {elements:,} elements, each as "
        + ", ".join(f"{state} ({dtype})" for state, dtype in _states(m)),
        *(f"  {t.name}  {list(t.shape)}" + (f"  tp axis {t.tp_axis}" if t.tp_axis is not None else "")
          for t in m.tensors),
        "settings:",
        *(f"  {name} = {value!r}" for name, value in flat(meta.config).items()),
    ]  # fmt: skip
    return "\n".join(lines)


def _row(folder: Place) -> Row:
    step = step_of(folder) or 0
    try:
        m = read_manifest(folder)
    except CheckpointError as error:
        return Row(folder, step, None, None, None, None, error.summary)
    age = (datetime.now(UTC) - m.created).total_seconds()
    return Row(folder, step, m.meta.tokens, m.meta.loss, m.bytes, age, _problem(folder, m))


def _problem(folder: Place, manifest: Manifest) -> str | None:
    try:
        check_sizes(folder, manifest)
    except CheckpointError as error:
        return error.summary
    return None


def _damages(folder: Place, manifest: Manifest, advance: Advance) -> Iterator[Problem]:
    def check(file: FileEntry) -> Problem | None:
        path = folder / file.name
        try:
            check_size(path, file.size)
            check_hash(path, file.sha256, advance)
            check_header(path, file, manifest)
        except CheckpointError as error:
            return Problem.of(error)
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        yield from filter(None, pool.map(check, manifest.files))


def _strangers(folder: Place, manifest: Manifest) -> list[Problem]:
    known = {MANIFEST, MANIFEST_HASH, *BESIDE, *(file.name for file in manifest.files)}
    fix = "move it elsewhere; dgpt never opens it"
    try:
        strange = sorted(path.name for path in folder.iterdir() if path.name not in known)
    except (UserError, FileNotFoundError):  # a web server may give files but no lists; what is gone, reading will say
        strange = []
    return [Problem(f"{folder / name}: not part of this checkpoint", fix) for name in strange]


def _states(manifest: Manifest) -> list[tuple[str, str]]:
    """Each state with its dtype; a state of several dtypes appears once for each."""
    return list(Counter(pair for tensor in manifest.tensors for pair in tensor.states.items()))
