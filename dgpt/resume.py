"""Where a run continues: all ranks load the same checkpoint, or an older one together."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from dgpt.checkpoint.find import Found, find_latest, open_checkpoint
from dgpt.checkpoint.format import CheckpointError
from dgpt.checkpoint.load import load
from dgpt.errors import UserError
from dgpt.parallel.engine import Engine
from dgpt.runtime import Runtime
from dgpt.setup import Setup, flat


def resume(setup: Setup, engine: Engine, runtime: Runtime) -> Found | None:
    """Load the newest checkpoint that verifies on every rank into the engine; None if there is no checkpoint.

    A damaged one is passed over by all ranks together. Raises CheckpointError if none is left.
    """
    damaged: dict[Path, str] = {}
    while True:
        folder, found = _agreed(setup.config.run_dir, damaged, runtime)
        if folder is None:
            return None
        found, problem = _load(folder, found, engine, setup)
        reason = next(filter(None, runtime.gather(problem)), None)
        if found and reason is None:
            engine.loaded(found.manifest.step)
            return found
        damaged[folder] = reason or ""


def finished(setup: Setup, runtime: Runtime) -> int | None:
    """The step of the newest checkpoint if the run needs no more; rank 0 decides for all. None if there is work."""
    step = setup.found.manifest.step if setup.found else 0
    step = runtime.broadcast(step)
    return step if step >= setup.config.training.steps else None


def describe(setup: Setup, found: Found | None) -> Iterator[str]:
    """What a start says about where it continues."""
    if found is None:
        yield f"starting fresh at step 0: no checkpoint in {setup.config.run_dir}"
    else:
        manifest, mesh = found.manifest, found.manifest.mesh
        yield from (f"passed over {reason}" for reason in found.skipped)
        written_by = f"dp {mesh.dp_size} x tp {mesh.tp}, ZeRO {mesh.zero_stage}"
        yield f"resuming at step {manifest.step} from {found.folder.name}, written by {written_by}"
        yield from _changes(setup, found)
    step = found.manifest.step if found else 0
    yield f"the next batch has fingerprint {setup.loader.fingerprint(step)}"


def _changes(setup: Setup, found: Found) -> Iterator[str]:
    then, now = flat(found.manifest.meta.config), flat(setup.config.model_dump(mode="json"))
    for name in now:
        if name != "run_dir" and then.get(name) != now[name]:
            yield f"changed since the checkpoint: {name} = {then.get(name)} -> {now[name]}"


def _agreed(run_dir: str, damaged: Mapping[Path, str], runtime: Runtime) -> tuple[Path | None, Found | None]:
    """The folder that rank 0 chose, opened on rank 0 alone: a file system may show it to one node before another.

    Raises rank 0's CheckpointError on every rank.
    """
    found, refusal = None, None
    if runtime.is_main:
        try:
            found = find_latest(run_dir, damaged)
        except UserError as error:
            refusal = error
    folder, refusal = runtime.broadcast((found.folder if found else None, refusal))
    if refusal:
        raise refusal
    return folder, found


def _load(folder: Path, found: Found | None, engine: Engine, setup: Setup) -> tuple[Found | None, str | None]:
    """The opened checkpoint, and the reason why this rank cannot load it, if there is one."""
    try:
        found = found or open_checkpoint(folder)
        load(found, engine.fragments(), setup.config)
    except CheckpointError as error:
        return found, error.summary
    return found, None
