"""A checkpoint of any topology continues at any other: ZeRO 1, 2, 3 x DP 1, 2, 4 x TP 1, 2 on up to 4 processes.

By default each topology is the source and the target of two others; `--every-pair` takes all 225 pairs.
"""

import shutil
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

import pytest
from pool import Pool
from runs import Seen, Topology, start, watch

from dgpt.checkpoint import Checkpointer, MeshEntry, open_checkpoint
from dgpt.checkpoint.read import read_manifest
from dgpt.checkpoint.whole import read_tensor
from dgpt.config import RunConfig
from dgpt.outcome import DONE, STOPPED
from dgpt.pretrain import Pretraining
from dgpt.runtime import Runtime
from dgpt.train.rows import read_rows

STEP = 2  # of the checkpoint
GRIDS = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2))  # dp, tp
TOPOLOGIES = [Topology(tp=tp, dp=dp, zero=zero) for zero, (dp, tp) in product((1, 2, 3), GRIDS)]
LLAMA = ("model.shape=llama", "model.n_kv_head=2")
SETTINGS = {
    f"{shape}-{dtype}": (f"precision.dtype={dtype}", "schedule.kind=constant", *(LLAMA if shape == "llama" else ()))
    for shape, dtype in product(("gpt2", "llama"), ("fp32", "bf16"))
}
STRIDES = {"gpt2-fp32": (1, 7), "llama-fp32": (4,), "gpt2-bf16": (), "llama-bf16": (11,)}
BF16_ROUNDING = 2**-8
Stopped = Callable[[str, Topology], Path]
NeverStopped = Callable[[str, Topology], dict[int, float]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        every = metafunc.config.getoption("--every-pair")
        size = len(TOPOLOGIES)
        cases = [(name, TOPOLOGIES[i], TOPOLOGIES[(i + stride) % size]) for name, strides in STRIDES.items()
                 for stride in (range(size) if every else strides) for i in range(size)]  # fmt: skip
        metafunc.parametrize(("name", "source", "target"), cases, ids=str)


@pytest.fixture(scope="module")
def stopped(pool: Pool, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """The folder of a run of these settings that was stopped after STEP steps at a topology."""
    folders: dict[tuple[str, Topology], Path] = {}

    def of(name: str, topology: Topology) -> Path:
        key = name, topology
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("stopped") / str(topology)
            ranks = start(pool, tiny_data, folders[key], topology, *SETTINGS[name], stop_after=STEP)
            assert {rank.code for rank in ranks} == {STOPPED}, ranks[0].errors
        return folders[key]

    return of


@pytest.fixture(scope="module")
def never_stopped(pool: Pool, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> NeverStopped:
    """Losses of the run that never stopped, at a topology."""
    curves: dict[tuple[str, Topology], dict[int, float]] = {}

    def of(name: str, topology: Topology) -> dict[int, float]:
        key = name, topology
        if key not in curves:
            folder = tmp_path_factory.mktemp(name)
            start(pool, tiny_data, folder, topology, *SETTINGS[name], f"training.steps={STEP + 1}")
            curves[key] = losses(folder)
        return curves[key]

    return of


def losses(run_dir: Path) -> dict[int, float]:
    return {int(row["step"]): float(row["loss/train"]) for row in read_rows(run_dir / "metrics.jsonl")}


def save_again(runtime: Runtime, config: RunConfig) -> Seen:
    """Task of the pool: a resumed run, which saves what it has loaded to the folder `again` before its first step."""

    def change(run: Pretraining) -> None:
        assert run.resumed is not None
        mesh = MeshEntry(world_size=runtime.world_size, dp_size=run.mesh.dp_size, tp=run.mesh.tp_size,
                         zero_stage=config.parallel.zero_stage)  # fmt: skip
        again = Checkpointer(Path(config.run_dir) / "again", runtime.rank, mesh, "again")
        runtime.broadcast(None)  # rank 0 has cleaned the folder
        again.save(STEP, run.engine.fragments(), read_manifest(run.resumed.folder).meta)
        again.wait()

    return watch(runtime, config, Seen(), change)


def contents(run_dir: Path) -> Iterable[tuple[str, str, bytes]]:
    """Tensor, state and the bytes of the whole tensor, of the newest checkpoint of a run."""
    found = open_checkpoint(run_dir)
    for number, entry in enumerate(found.manifest.tensors):
        for state in entry.states:
            yield entry.name, state, read_tensor(found, number, state, lambda _: None).numpy().tobytes()


def test_continues_at_another_topology(
    pool: Pool, tiny_data: Path, tmp_path: Path, stopped: Stopped, never_stopped: NeverStopped, name: str,
    source: Topology, target: Topology,
) -> None:  # fmt: skip
    """What is loaded is bit for bit what was saved, and the next loss is that of the run that never stopped.

    In fp32 that run is of one process. In bf16 the sums of gradients round differently at each topology, hence it is
    that of the source; and where the partial sums of a product are other ones, the loss may differ by such a rounding.
    """
    run_dir = Path(shutil.copytree(stopped(name, source), tmp_path / "run"))
    saved = sorted(contents(run_dir))
    ranks = start(pool, tiny_data, run_dir, target, *SETTINGS[name], f"training.steps={STEP + 1}", task=save_again)
    assert {rank.code for rank in ranks} == {DONE}, ranks[0].errors
    assert sorted(contents(run_dir / "again")) == saved
    assert {state for _, state, _ in saved} == {"weight", "exp_avg", "exp_avg_sq"}
    bf16 = name.endswith("bf16")
    expected = never_stopped(name, source if bf16 else Topology())
    tolerance = BF16_ROUNDING if bf16 and source.tp != target.tp else 1e-5
    assert losses(run_dir) == pytest.approx(expected, rel=tolerance)
