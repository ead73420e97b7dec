"""Fine-tuning on several processes is fine-tuning on one, and a resumed run is the one that never stopped."""

import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pool import Pool
from runs import SIGNALS, Topology, start

from dgpt import finetune, outcome
from dgpt.config import FinetuneConfig, load_settings
from dgpt.finetune import Finetuning
from dgpt.outcome import DONE, STOPPED
from dgpt.runtime import Runtime
from dgpt.train.rows import read_rows

WORDS = ["ba", "fe", "gio", "kou", "la_x", "ni12", "me", "du"]
STEPS, STOP = 6, 3
SETTINGS = ("logging.tensorboard=false", "logging.every_steps=1", "precision.dtype=fp32", "optimizer.lr=3e-3",
            "training.global_batch_size=8", "training.micro_batch_size=2", f"training.steps={STEPS}",
            "training.eval_every_steps=3", "training.eval_generations=5", "task.max_new_tokens=4", "best.keep=false",
            "checkpoint.every_steps=0")  # fmt: skip


@pytest.fixture(scope="module")
def base(pool: Pool, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    start(pool, tiny_data, run, Topology(), "model.seq_len=64", "training.steps=2")
    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that serve two tasks."""
    folder, rng = tmp_path_factory.mktemp("examples"), random.Random(0)
    for name, count in (("train", 150), ("validation", 21)):
        words = [rng.choices(WORDS, k=rng.randint(1, 7)) for _ in range(count)]
        rows = [{"prompt": f"{' '.join(w)} =>", "completion": f" {' '.join(w[:2])}", "text": " ".join(w),
                 "label": len(w) % 3} for w in words]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def tune(runtime: Runtime, overrides: list[str], stop_after: int = 0) -> tuple[int, dict[tuple[str, str, int], str]]:
    """Task of the pool: a whole fine-tuning; its exit code, and a hash of each piece of state at the end."""
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # which accelerate leaves behind for the whole process
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", LOCAL_WORLD_SIZE=str(runtime.world_size))  # as torchrun
    if "deepspeed.utils.groups" in sys.modules:
        sys.modules["deepspeed.utils.groups"]._WORLD_GROUP = None  # of the job before
    if runtime.world_size == 1:
        os.environ.pop("LOCAL_RANK", None)  # nobody's rank
    state: dict[tuple[str, str, int], str] = {}

    class Watched(Finetuning):
        def run(self) -> int:
            step, numbers = self.engine.step, iter(range(self.start_step + 1, 99))

            def stepping(lr: float) -> float:
                if next(numbers) == stop_after - (runtime.world_size > 1) and runtime.is_main and stop_after:
                    os.kill(os.getpid(), signal.SIGUSR1)
                return step(lr)

            self.engine.step = stepping  # type: ignore[method-assign]
            code = super().run()
            state.update({(f.name, f.state, f.start): sha256(f.tensor.detach().numpy().tobytes()).hexdigest()
                          for f in self.engine.fragments()})  # fmt: skip
            return code

    before = {number: signal.getsignal(number) for number in SIGNALS}
    with ExitStack() as stack:
        for name, value in (("identify", runtime), ("join", None), ("finish", None)):
            stack.enter_context(patch.object(finetune.processes, name, return_value=value))
        stack.enter_context(patch.object(finetune, "Finetuning", Watched))
        stack.enter_context(redirect_stdout(StringIO()))
        code = outcome.guard(lambda: finetune.finetune(load_settings(FinetuneConfig, None, overrides)))
    for number, handler in before.items():
        signal.signal(number, handler)
    return code, state


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Workers in which no engine of pretraining has been: DeepSpeed remembers its mesh for the whole process."""
    own = Pool()
    yield own
    own.close()


def curve(run: Path) -> list[float]:
    """Losses and norms of the steps, and the held-out losses."""
    names = ("loss/train", "optimizer/grad_norm", "loss/validation")
    return [float(row[name] or 0) for row in read_rows(run / "metrics.jsonl") for name in names if name in row]


@pytest.mark.parametrize(
    ("more", "stages"),
    [(["task.kind=generation"], (0, 1, 2, 3)), (["task.kind=generation", "lora.rank=4"], (0, 3)),
     (["task.kind=classification", "task.class_weights=balanced"], (0,))],
    ids=["generation", "lora", "classification"],
)  # fmt: skip
def test_any_number_of_processes_learns_the_same(
    pool: Pool, base: Path, data: Path, tmp_path: Path, more: list[str], stages: tuple[int, ...]
) -> None:
    """DDP, and DeepSpeed at each stage: losses and norms are those of one process, with gradient accumulation."""
    common = [f"base={base}", f"data.path={data}", *SETTINGS, *more]
    assert {code for code, _ in pool.run(tune, 1, overrides=[*common, f"run_dir={tmp_path / 'one'}"])} == {DONE}
    one = curve(tmp_path / "one")
    assert len(one) == 2 * STEPS + 2
    for stage in stages:
        run = tmp_path / f"zero{stage}"
        ranks: list[Any] = pool.run(tune, 2, overrides=[*common, f"run_dir={run}", f"parallel.zero_stage={stage}"])
        assert {code for code, _ in ranks} == {DONE}
        assert curve(run) == pytest.approx(one, abs=1e-5, rel=1e-5), stage


@pytest.mark.parametrize("stage", [0, 2])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    pool: Pool, base: Path, data: Path, tmp_path: Path, stage: int
) -> None:
    common = [f"base={base}", f"data.path={data}", *SETTINGS, "training.dropout=0.1", f"parallel.zero_stage={stage}"]
    whole: list[Any] = pool.run(tune, 2, overrides=[*common, f"run_dir={tmp_path / 'whole'}"])
    cut: list[Any] = pool.run(tune, 2, overrides=[*common, f"run_dir={tmp_path / 'cut'}"], stop_after=STOP)
    resumed: list[Any] = pool.run(tune, 2, overrides=[*common, f"run_dir={tmp_path / 'cut'}"])
    assert [code for code, _ in (*whole, *cut, *resumed)] == [DONE, DONE, STOPPED, STOPPED, DONE, DONE]
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    for (_, a), (_, b), (_, c) in zip(whole, cut, resumed, strict=True):
        assert a == c != b
        assert {state for _, state, _ in a} == {"weight", "exp_avg", "exp_avg_sq"}
