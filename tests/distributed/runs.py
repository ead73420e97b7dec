"""Whole runs on the ranks of the pool: `dgpt.pretrain.pretrain` as it is, and what is seen of it from outside."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pool import Pool

from dgpt import outcome, pretrain
from dgpt.config import RunConfig, load_config
from dgpt.data.loader import Batch
from dgpt.pretrain import Pretraining
from dgpt.runtime import Runtime

TINY = (
    "model.n_layer=2", "model.n_head=4", "model.n_embd=32", "model.seq_len=16", "model.vocab_multiple=32",
    "model.init_std=0.1", "training.global_batch_size=8", "training.steps=6",
    "training.eval_every_steps=0", "training.loss_chunk_tokens=24", "schedule.warmup_steps=0", "optimizer.lr=3e-3",
    "checkpoint.every_steps=0", "logging.every_steps=1", "logging.tensorboard=false", "precision.dtype='fp32'",
)  # fmt: skip
STEPS = 6
SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
Change = Callable[[Pretraining], None]


@dataclass(frozen=True)
class Topology:
    """The grid of processes, and ZeRO."""

    tp: int = 1
    dp: int = 1
    zero: int = 1
    sequence_parallel: bool = False

    @property
    def world(self) -> int:
        return self.tp * self.dp

    @property
    def micro_batch_size(self) -> int:
        """Two micro steps of the 8 samples of a step, or one with 4 ranks: collectives are what takes time."""
        return max(2, 4 // self.dp)

    @property
    def overrides(self) -> list[str]:
        return [f"parallel.tp={self.tp}", f"parallel.zero_stage={self.zero}",
                f"training.micro_batch_size={self.micro_batch_size}",
                f"parallel.sequence_parallel={str(self.sequence_parallel).lower()}"]  # fmt: skip

    def __str__(self) -> str:
        return f"zero{self.zero}-dp{self.dp}-tp{self.tp}{'-sp' * self.sequence_parallel}"


@dataclass
class Seen:
    """What one rank did in one start of a run."""

    code: int = -1
    output: str = ""
    errors: str = ""
    micro_steps: list[dict[int, list[int]]] = field(default_factory=list)  # sample number -> its seq_len + 1 tokens
    state: dict[tuple[str, str, int], str] = field(default_factory=dict)  # name, state, start -> hash at the end
    events: list[str] = field(default_factory=list)  # for the tasks of a test to note things in

    @property
    def samples(self) -> list[int]:
        return [sample for micro_step in self.micro_steps for sample in micro_step]


def config_of(data: Path, run_dir: Path, topology: Topology, *overrides: str) -> RunConfig:
    places = [f"data.path={data}", f"run_dir={run_dir}"]
    return load_config(None, [*TINY, *places, *topology.overrides, *overrides])


def start(
    pool: Pool, data: Path, run_dir: Path, topology: Topology, *overrides: str, task: Callable[..., Seen] | None = None,
    **how: Any,
) -> list[Seen]:  # fmt: skip
    """One start of a run on all of its ranks. `task` (by default `train`) gets `how`."""
    config = config_of(data, run_dir, topology, *overrides)
    ranks: list[Seen] = pool.run(task or train, topology.world, config=config, **how)
    return ranks


def train(runtime: Runtime, config: RunConfig, stop_after: int = 0) -> Seen:
    """Task of the pool: a run to its end, or until a signal to rank 0 stops all ranks after `stop_after` steps."""

    def change(run: Pretraining) -> None:
        if stop_after and runtime.is_main:
            delay = runtime.world_size > 1  # several ranks stop one step after the flag
            on_step(run, stop_after - delay, lambda: os.kill(os.getpid(), signal.SIGUSR1))

    return watch(runtime, config, Seen(), change)


def on_step(run: Pretraining, number: int, action: Callable[[], None]) -> None:
    """Call `action` as optimizer step `number` (counted from 1, over all starts) begins on this rank."""
    step, done = run.engine.step, iter(range(run.start_step + 1, 1 << 30))

    def stepping(lr: float) -> float:
        if next(done) == number:
            action()
        return step(lr)

    run.engine.step = stepping  # type: ignore[method-assign]


def watch(runtime: Runtime, config: RunConfig, seen: Seen, change: Change) -> Seen:
    """Run `pretrain`, with `change` applied to the components before the first step, and fill `seen`."""

    class Watched(Pretraining):
        def run(self) -> int:
            _note_samples(self, seen)
            change(self)
            code = super().run()
            seen.state = hashes(self)
            return code

    output, errors = StringIO(), StringIO()
    with _in_this_group(runtime, Watched), redirect_stdout(output), redirect_stderr(errors):
        seen.code = outcome.guard(lambda: pretrain.pretrain(config))
    seen.output, seen.errors = output.getvalue(), errors.getvalue()
    return seen


def hashes(run: Pretraining) -> dict[tuple[str, str, int], str]:
    """Every weight and optimizer state that this rank holds."""
    return {(f.name, f.state, f.start): sha256(f.tensor.detach().numpy().tobytes()).hexdigest()
            for f in run.engine.fragments()}  # fmt: skip


def _note_samples(run: Pretraining, seen: Seen) -> None:
    step = run.setup.loader.step

    def noting(number: int) -> Iterator[Batch]:
        for batch in step(number):
            windows = torch.cat((batch.tokens, batch.targets[:, -1:]), dim=1).tolist()
            seen.micro_steps.append(dict(zip(batch.samples, windows, strict=True)))
            yield batch

    run.setup.loader.step = noting  # type: ignore[method-assign]


@contextmanager
def _in_this_group(runtime: Runtime, watched: type[Pretraining]) -> Iterator[None]:
    """The pool has joined the ranks already; signals are handled as before once the run is over."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with ExitStack() as stack:
        for name, value in (("identify", runtime), ("join", None), ("finish", None)):
            stack.enter_context(patch.object(pretrain.processes, name, return_value=value))
        stack.enter_context(patch.object(pretrain, "Pretraining", watched))
        yield
    for number, handler in before.items():
        signal.signal(number, handler)
