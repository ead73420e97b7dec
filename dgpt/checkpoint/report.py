"""What is in a run's checkpoints, for people: list, verify, show."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dgpt.checkpoint.files import FOLDER, step_folders, step_of
from dgpt.checkpoint.format import MANIFEST, MANIFEST_HASH, CheckpointError, Manifest
from dgpt.checkpoint.read import check_hash, check_header, check_size, check_sizes, read_manifest


@dataclass(frozen=True)
class Row:
    """One line of `dgpt checkpoint list`; what only the manifest knows is None where that cannot be read."""

    folder: Path
    step: int
    tokens: int | None
    loss: float | None
    bytes: int | None
    age_seconds: float | None
    problem: str | None  # None: manifest and file sizes are right (`verify` checks the hashes)


def list_checkpoints(run_dir: str | Path) -> list[Row]:
    """The checkpoints of a run, oldest first."""
    return [_row(folder) for folder in reversed(step_folders(Path(run_dir) / FOLDER))]


def verify(folder: str | Path, *, progress: bool = False) -> list[str]:
    """Read every byte; returns the problems, none if the checkpoint is whole. progress: a bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return [error.summary]
    columns = (TextColumn(folder.name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    problems = _strangers(folder, manifest)
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("", total=manifest.bytes)
        for file in manifest.files:
            try:
                check_size(folder / file.name, file.size)
                check_hash(folder / file.name, file.sha256, lambda count: bar.advance(task, count))
                check_header(folder / file.name, file, manifest)
            except CheckpointError as error:
                problems.append(error.summary)
    return problems


def show(folder: str | Path) -> str:
    """Progress, topology, sizes and tensors of a checkpoint as text. Raises CheckpointError."""
    folder = Path(folder)
    m = read_manifest(folder)
    mesh, meta = m.mesh, m.meta
    elements = sum(t.part_numel * t.tp_size for t in m.tensors)
    lines = [
        f"{folder}",
        f"step {m.step}, {meta.tokens:,} tokens, {meta.samples:,} samples, loss {meta.loss}",
        f"written {m.created} by dgpt {m.dgpt}, torch {m.torch}; format {m.format}",
        f"topology: {mesh.world_size} ranks = dp {mesh.dp_size} x tp {mesh.tp}, ZeRO {mesh.zero_stage}",
        f"data {meta.data_hash}, tokenizer {meta.tokenizer_hash}",
        f"{len(m.files)} files, {m.bytes:,} bytes; {len(m.tensors)} tensors, {elements:,} elements, each as "
        + ", ".join(f"{state} ({dtype})" for state, dtype in _states(m)),
        *(f"  {t.name}  {list(t.shape)}" + (f"  tp axis {t.tp_axis}" if t.tp_axis is not None else "")
          for t in m.tensors),
    ]  # fmt: skip
    return "\n".join(lines)


def _row(folder: Path) -> Row:
    step = step_of(folder) or 0
    try:
        m = read_manifest(folder)
    except CheckpointError as error:
        return Row(folder, step, None, None, None, None, error.summary)
    try:
        check_sizes(folder, m)
        problem = None
    except CheckpointError as error:
        problem = error.summary
    age = (datetime.now(UTC) - m.created).total_seconds()
    return Row(folder, step, m.meta.tokens, m.meta.loss, m.bytes, age, problem)


def _strangers(folder: Path, manifest: Manifest) -> list[str]:
    known = {MANIFEST, MANIFEST_HASH, *(file.name for file in manifest.files)}
    return [f"{path}: not part of this checkpoint" for path in sorted(folder.iterdir()) if path.name not in known]


def _states(manifest: Manifest) -> list[tuple[str, str]]:
    """Each state with its dtype; a state of several dtypes appears once for each."""
    return list(Counter(pair for tensor in manifest.tensors for pair in tensor.states.items()))
