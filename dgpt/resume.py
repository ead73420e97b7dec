"""Where a run continues: all ranks load the same checkpoint, or an older one together."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dgpt import changes
from dgpt.checkpoint.compatible import check_model
from dgpt.checkpoint.files import step_of
from dgpt.checkpoint.find import Found, find_latest
from dgpt.checkpoint.format import CheckpointError
from dgpt.checkpoint.load import load
from dgpt.checkpoint.peers import Peers
from dgpt.checkpoint.read import read_manifest
from dgpt.checkpoint.report import damage_of
from dgpt.fragments import Fragment
from dgpt.parallel.engine import Engine
from dgpt.runtime import Runtime
from dgpt.setup import Setup
from dgpt.storage import Place
from dgpt.train.rows import earlier


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run continues from."""

    folder: Place
    step: int
    report: tuple[str, ...]  # what is to be said of it
    damaged: Mapping[Place, str]  # those that could not be loaded, and why


def newest_step(setup: Setup, runtime: Runtime) -> int:
    """Of the newest checkpoint, 0 without one. Raises UserError, on every rank, if the run cannot continue from it.

    One that would end the run is read to the last byte first: a damaged one is no end.
    """
    damaged: dict[Place, str] = {}
    while True:
        folder, _ = _choose(setup, damaged, runtime)
        step = (step_of(folder) or 0) if folder else 0
        if folder is None or step < setup.config.training.steps:
            return step
        problem = runtime.on_main(partial(damage_of, folder, progress=sys.stderr.isatty()))
        if problem is None:
            return step
        damaged[folder] = problem


def resume(setup: Setup, engine: Engine, runtime: Runtime) -> Resumed | None:
    """Load the newest checkpoint that verifies on every rank into the engine; None if there is no checkpoint.

    A damaged one is passed over by all ranks together. Raises CheckpointError if none is left.
    """
    damaged: dict[Place, str] = {}
    while True:
        folder, passed_over = _choose(setup, damaged, runtime)
        if folder is None:
            return None
        try:
            report = _load(folder, passed_over, engine, setup, Peers(runtime.rank, runtime.gather))
            return Resumed(folder, step_of(folder) or 0, report, damaged)
        except CheckpointError as error:
            damaged[folder] = error.summary


def describe(setup: Setup, resumed: Resumed | None) -> Iterator[str]:
    """What a start says about where it continues."""
    if resumed is None:
        yield f"starting fresh at step 0: no checkpoint in {setup.config.run_dir}"
        if reached := earlier(Path(setup.config.run_dir) / "metrics.jsonl"):
            yield (f"WARNING, an earlier start was at step {reached.step}, and no checkpoint of it is here (none saved "
                   f"yet, moved, not mounted?); its numbers go to {reached.kept.name}")  # fmt: skip
    else:
        yield from resumed.report
    yield f"the next batch has fingerprint {setup.loader.fingerprint(resumed.step if resumed else 0)}"


Choice = tuple[Place | None, tuple[str, ...]]  # the newest whole checkpoint, and what was passed over


def _choose(setup: Setup, damaged: Mapping[Place, str], runtime: Runtime) -> Choice:
    """As rank 0 sees it: a file system may show a folder to one node before another. Raises UserError on every rank."""

    def choose() -> Choice:
        found = find_latest(setup.config.run_dir, damaged)
        if found is None:
            return None, ()
        if found.manifest.meta.tokenizer_hash != setup.tokenizer.hash:  # then the vocabulary may be another, too
            changes.check_same_data(found, setup.config, setup.data_hash, setup.tokenizer.hash)
        check_model(found, setup.config)
        changes.check_same_data(found, setup.config, setup.data_hash, setup.tokenizer.hash)
        return found.folder, found.skipped

    return runtime.on_main(choose)


def _load(folder: Place, passed_over: tuple[str, ...], engine: Engine, setup: Setup, peers: Peers) -> tuple[str, ...]:
    """Returns what is to be said. Raises CheckpointError on all ranks if one of them cannot load it."""
    with peers.agreed():
        found = Found(folder, read_manifest(folder), passed_over)  # load checks the sizes of what it reads
    fragments = engine.fragments()
    states = set().union(*peers.gather({fragment.state for fragment in fragments}))
    weights_only = not states <= set(found.manifest.states)
    load(found, fragments, setup.config, states={"weight"} if weights_only else None, peers=peers)
    if weights_only:
        _forget(fragments)
    engine.loaded(0 if weights_only else found.manifest.step)
    return tuple(_report(found, setup, weights_only))


def _report(found: Found, setup: Setup, weights_only: bool) -> Iterator[str]:
    """Lines, so that the manifest, which is large for many ranks, need not stay in memory."""
    manifest, mesh = found.manifest, found.manifest.mesh
    yield from (f"passed over {reason}" for reason in found.skipped)
    written_by = f"dp {mesh.dp_size} x tp {mesh.tp}, ZeRO {mesh.zero_stage}"
    yield f"resuming at step {manifest.step} from {found.folder.name}, written by {written_by}"
    if weights_only:
        yield f"WARNING, the optimizer starts anew: the checkpoint holds only {', '.join(manifest.states)}"
    yield from changes.report(found, setup.config, setup.data_hash, setup.tokenizer.hash)


def _forget(fragments: list[Fragment]) -> None:
    """An optimizer that has taken no step."""
    for fragment in fragments:
        if fragment.state != "weight":
            fragment.tensor.zero_()
