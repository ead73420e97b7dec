"""A run on one rank: what pretraining and fine-tuning have in common, from the run folder to the loop and back."""

import hashlib
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from dgpt import runtime as processes
from dgpt.checkpoint.format import MeshEntry, Meta
from dgpt.checkpoint.save import Checkpointer
from dgpt.config import LoopConfig, to_toml
from dgpt.data.tokenizer import save_tokenizer
from dgpt.errors import TrainingError
from dgpt.lease import Lease
from dgpt.model.flops import parameter_count, peak_flops
from dgpt.outcome import DONE, LAST_SECONDS, STOPPED
from dgpt.parallel.engine import Engine
from dgpt.parallel.mesh import Mesh
from dgpt.pulse import Pulse
from dgpt.resume import resume
from dgpt.runtime import Runtime
from dgpt.setup import Setup
from dgpt.train.console import Console
from dgpt.train.loop import Losses, Verdict, Work, train
from dgpt.train.metrics import Monitor
from dgpt.train.profile import Profiler
from dgpt.train.stop import Stopper
from dgpt.train.timing import Timings

NOT_FINITE = """step {step}: the loss or the gradient is not finite
  {places}
  rule: the run stops at once, on all ranks, and saves nothing of this step
  fix:  lower optimizer.lr or lengthen the warmup, look at these samples, then start again: it resumes from its newest \
checkpoint"""
NOT_SAVED = """step {step} is done, but its checkpoint could not be written
  rule: a run ends with a checkpoint
  fix:  mend what is reported above, then start again: it resumes from its newest checkpoint"""


class HeldOutBatch(Protocol):
    """Samples whose loss is measured and not learnt from."""

    @property
    def inputs(self) -> tuple[Any, ...]: ...
    @property
    def valid(self) -> float: ...  # its share in the mean: 0 for a batch that only keeps a rank in step
    def to(self, device: torch.device) -> "HeldOutBatch": ...


class Run:
    """The components of a run on one rank, and what the loop asks of them."""

    setup: Setup
    config: LoopConfig
    engine: Engine

    def __init__(self, setup: Setup, runtime: Runtime, lease: Lease | None) -> None:
        self.runtime, self.lease = runtime, lease
        self.setup, self.config = setup, setup.config
        self.run_dir = Path(setup.config.run_dir)
        attempt = self._attempt()
        self.pulse = Pulse(setup.config, runtime, attempt)
        self.mesh = Mesh(setup.dims, runtime.rank, setup.config.parallel.first_step_timeout_seconds)
        self.engine = self.build_engine()
        if runtime.is_main:
            self._fill_run_dir()
        self.checkpointer = Checkpointer(
            self.run_dir, runtime.rank,
            MeshEntry(world_size=runtime.world_size, dp_size=self.mesh.dp_size, tp=self.mesh.tp_size,
                      zero_stage=setup.config.parallel.zero_stage),
            attempt, keep_last=setup.config.checkpoint.keep_last, keep_every=setup.config.checkpoint.keep_every,
            writer=lease, alive=self.pulse.alive,
        )  # fmt: skip
        self.resumed = resume(setup, self.engine, runtime)
        self.start_step = self.resumed.step if self.resumed else 0
        if self.resumed:
            self.checkpointer.continues(self.resumed.folder, self.resumed.damaged)

    # What a kind of run has of its own.

    @classmethod
    def finished_before(cls, setup: Setup, step: int) -> str:
        """Why there is nothing to do for a run whose newest checkpoint is of `step`; empty if there is. On rank 0."""
        if step < setup.config.training.steps:
            return ""
        return (f"{setup.config.run_dir} is at step {step} of training.steps = {setup.config.training.steps}; "
                "raise training.steps to go on")  # fmt: skip

    @classmethod
    def trained_parameters(cls, setup: Setup) -> int:
        """Elements of what a checkpoint holds."""
        return parameter_count(setup.config.model)

    def build_engine(self) -> Engine:
        raise NotImplementedError

    @property
    def has_dropout(self) -> bool:
        return self.config.model.dropout > 0

    def evaluate(self, done: int) -> Verdict:
        """Measure the model after `done` steps."""
        raise NotImplementedError

    def sample(self, done: int) -> None:
        """Show a text of the model after `done` steps."""

    def hello(self) -> Iterable[str]:
        """Lines about the run, for its start."""
        raise NotImplementedError

    def flops_per_token(self) -> float:
        """Forward and backward."""
        raise NotImplementedError

    # What they have in common.

    def _fill_run_dir(self) -> None:
        """A run folder describes itself: its settings, and the tokenizer that reads its model."""
        (self.run_dir / "config.toml").write_text(to_toml(self.config), encoding="utf-8")
        (self.run_dir / "tokenizer").mkdir(exist_ok=True)
        save_tokenizer(self.setup.tokenizer, self.run_dir / "tokenizer")

    def run(self) -> int:
        total, is_main = self.config.training.steps, self.runtime.is_main
        timings = Timings(self.pulse.enter, self.runtime.device)
        self.stopper = Stopper(
            self.run_dir, is_main=is_main, world_size=self.runtime.world_size, device=self.runtime.device,
            taken_over=lambda: self.lease is not None and self.lease.lost,
        )  # fmt: skip
        with self.stopper, Console(total_steps=total, start_step=self.start_step, enabled=is_main) as self.console:
            for line in self.hello() if is_main else ():
                self.console.print(line)
            with self._monitor() as self.monitor:
                self.monitor.log_text("config", to_toml(self.config), self.start_step)
                profiler = Profiler(
                    self.config.logging.profile_steps, self.run_dir, rank=self.runtime.rank,
                    device=self.runtime.device,
                )  # fmt: skip
                self.pulse.begin()
                with self._last_save():
                    done = train(self.config, self.engine, self._work(), self.monitor, self.stopper, profiler,
                                 timings, self.start_step)  # fmt: skip
        code = self._say_goodbye(done)
        self.conclude()
        self.pulse.end()
        return code

    @contextmanager
    def _last_save(self) -> Iterator[None]:
        """A save that runs at the end may take as long as it needs; after a failure that is not of all ranks together,
        when a peer may be gone, it has some seconds, and so has all else."""
        try:
            yield
        except (TrainingError, KeyboardInterrupt):
            self.checkpointer.wait()
            raise
        except Exception:
            processes.end_within(LAST_SECONDS)
            self.checkpointer.wait(LAST_SECONDS / 2)
            raise
        else:
            self.checkpointer.wait()
        finally:
            self.settled()

    def settled(self) -> None:
        """Called when a save may have ended, with `checkpointer.saved_step` as it is now."""

    def conclude(self) -> None:
        """The last thing that a run does, when all is saved; on every rank."""

    def _work(self) -> Work:
        return Work(
            batches=lambda step: (batch.to(self.runtime.device) for batch in self.setup.loader.step(step)),
            seed=self._seed_dropout,
            mean=self._mean,
            explain=self._explain,
            position=self.setup.loader.position,
            evaluate=self.evaluate,
            sample=self.sample,
            save=self.save,
            poll=self._after_step,
            share=self._share,
        )

    def _after_step(self) -> None:
        self.checkpointer.poll()
        self.settled()
        self.pulse.stepped()

    def _share(self, x: float) -> list[float]:
        """Every rank's number, by one sum."""
        numbers = torch.zeros(self.runtime.world_size, device=self.runtime.device)
        numbers[self.runtime.rank] = x
        if self.mesh.distributed:
            dist.all_reduce(numbers)
        return numbers.tolist()

    def _seed_dropout(self, step: int, micro_step: int) -> None:
        """So that resumed = uninterrupted without saving generators: alike on all TP ranks, other on each DP rank."""
        if self.has_dropout:
            key = f"{self.config.seed}/{step}/{micro_step}/{self.mesh.dp_rank}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1)

    def _mean(self, x: Tensor) -> Tensor:
        return self._sum(x.clone()) / self.mesh.dp_size

    def _sum(self, x: Tensor) -> Tensor:
        """Over the data parallel ranks, in place."""
        if self.mesh.distributed:
            dist.all_reduce(x, group=self.mesh.dp_group)
        return x

    def _explain(self, step: int, losses: Losses) -> TrainingError:
        """What every rank knows about a step that is not finite."""
        found = [f"rank {self.runtime.rank}: the loss on samples {', '.join(map(str, samples))}"
                 for loss, samples in losses if not math.isfinite(float(loss))]  # fmt: skip
        places = [place for of_rank in self.runtime.gather(found) for place in of_rank]
        size = self.setup.plan.global_batch_size
        everywhere = (f"ranks 0 to {self.runtime.world_size - 1}: every loss is finite, the gradient over their "
                      f"samples {step * size} to {(step + 1) * size - 1} is not")  # fmt: skip
        return TrainingError(NOT_FINITE.format(step=step + 1, places="\n  ".join(places or [everywhere])))

    def mean_loss(self, done: int, batches: Iterable[HeldOutBatch]) -> float:
        """Of held-out batches after `done` steps, over all ranks, each weighed by its `valid`."""
        self.engine.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.runtime.device)  # of loss x valid, of valid
        with torch.no_grad():
            for batch in batches:
                self.pulse.enter(done, "evaluate")
                loss = self.engine(*batch.to(self.runtime.device).inputs)
                sums += torch.stack((loss.double() * batch.valid, torch.full_like(sums[0], batch.valid)))
        self.engine.model.train()
        loss_sum, valid = self._sum(sums).tolist()
        return float(loss_sum / valid)

    def save(self, done: int, loss: float) -> None:
        at = self.setup.loader.position(done)
        meta = Meta(
            tokens=at.tokens, samples=at.samples, loss=loss, data_hash=self.setup.data_hash,
            tokenizer_hash=self.setup.tokenizer.hash, config=self.config.model_dump(mode="json"),
        )  # fmt: skip
        self.checkpointer.save(done, self.engine.fragments(), meta)

    def _attempt(self) -> str:
        """A name of this start that all ranks share."""
        return self.runtime.broadcast(f"{time.time_ns():x}")

    def _monitor(self) -> Monitor:
        config, device = self.config, self.runtime.device
        fp32 = "tf32" if config.precision.float32_matmul == "high" else "fp32"
        kind = "bf16" if self.setup.dtype == torch.bfloat16 else fp32
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        return Monitor(
            config, run_dir=self.run_dir, is_main=self.runtime.is_main, start_step=self.start_step,
            start_tokens=self.setup.loader.position(self.start_step).tokens, flops_per_token=self.flops_per_token(),
            world_size=self.runtime.world_size, device=device, console=self.console,
            nodes=self.runtime.gather(processes.node()), peak_flops=peak_flops(name, kind),  # type: ignore[arg-type]
        )  # fmt: skip

    def _say_goodbye(self, done: int) -> int:
        """Raises TrainingError if the last save failed."""
        if self.checkpointer.saved_step != done:
            raise TrainingError(NOT_SAVED.format(step=done))
        stopped = done < self.config.training.steps and bool(self.stopper.reason)
        if self.runtime.is_main:
            goodbye = f"stopped by {self.stopper.reason} at step {done}, saved; the same command goes on from here"
            print(goodbye if stopped else self.goodbye(done), flush=True)
        return STOPPED if stopped else DONE

    def goodbye(self, done: int) -> str:
        """Said at the end of a run; on rank 0."""
        return f"finished: step {done}, {self.run_dir}"
