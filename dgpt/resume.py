"""Where a run continues: all ranks load the same checkpoint, or an older one together."""

from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from dgpt.checkpoint.find import Found, find_latest, open_checkpoint
from dgpt.checkpoint.format import CheckpointError
from dgpt.checkpoint.load import load
from dgpt.parallel.engine import Engine
from dgpt.runtime import Runtime
from dgpt.setup import Setup, flat


def resume(setup: Setup, engine: Engine, runtime: Runtime) -> Found | None:
    """Load the newest checkpoint that verifies on every rank into the engine; None if there is no checkpoint.

    A damaged one is passed over by all ranks together. Raises CheckpointError if none is left.
    """
    damaged: dict[Path, str] = {}
    while True:
        found = _agreed(find_latest(setup.config.run_dir, damaged) if runtime.is_main else None, runtime)
        if found is None:
            return None
        reason = _first(_gather(_load(found, engine, setup), runtime))
        if reason is None:
            engine.loaded(found.manifest.step)
            return found
        damaged[found.folder] = reason


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


def _load(found: Found, engine: Engine, setup: Setup) -> str | None:
    """The reason why this rank cannot load `found`, if there is one."""
    try:
        load(found, engine.fragments(), setup.config)
    except CheckpointError as error:
        return error.summary
    return None


def _agreed(found: Found | None, runtime: Runtime) -> Found | None:
    """Rank 0's choice on every rank; file systems may show a new folder to one node before another."""
    if runtime.world_size == 1:
        return found
    choice = [str(found.folder) if found else None]
    dist.broadcast_object_list(choice, src=0)
    return found or (open_checkpoint(choice[0]) if choice[0] else None)


def _gather(value: str | None, runtime: Runtime) -> list[str | None]:
    if runtime.world_size == 1:
        return [value]
    values: list[str | None] = [None] * runtime.world_size
    dist.all_gather_object(values, value)
    return values


def _first(values: list[str | None]) -> str | None:
    return next((value for value in values if value), None)
