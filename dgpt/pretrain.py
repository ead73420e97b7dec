"""`dgpt pretrain`: a config becomes components, and the components a trained model."""

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from dgpt import runtime as processes
from dgpt.checkpoint.files import FOLDER as CHECKPOINTS
from dgpt.checkpoint.files import clean
from dgpt.checkpoint.format import MeshEntry, Meta
from dgpt.checkpoint.save import Checkpointer
from dgpt.config import RunConfig, to_toml
from dgpt.data.loader import Batch, ValidationLoader
from dgpt.data.tokenizer import save_tokenizer
from dgpt.errors import TrainingError
from dgpt.lease import Lease
from dgpt.model.flops import flops_per_token, parameter_count, peak_flops
from dgpt.outcome import DONE, LAST_SECONDS, STOPPED
from dgpt.parallel.engine import Engine, build_engine
from dgpt.parallel.mesh import Mesh
from dgpt.preview import preview
from dgpt.pulse import Pulse
from dgpt.resume import describe, newest_step, resume
from dgpt.runtime import Runtime
from dgpt.setup import Setup, check, check_alike, check_space
from dgpt.train.console import Console
from dgpt.train.loop import Losses, Work, train
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


def pretrain(config: RunConfig) -> int:
    """Train the run on this process and its peers; returns the exit code: done, or stopped after a save.

    Raises UserError before the first collective, and TrainingError when a loss is not finite.
    """
    runtime = processes.identify()
    setup = check(config, runtime)
    torch.set_float32_matmul_precision(config.precision.float32_matmul)
    processes.join(runtime, config.parallel.first_step_timeout_seconds)
    check_alike(setup, runtime)
    step = newest_step(setup, runtime)
    if step >= config.training.steps:
        code = _nothing_to_do(step, config, runtime)
    else:
        with _lease(setup.config, runtime) as lease:
            code = Pretraining(setup, runtime, lease).run()
    processes.finish()  # not after an error: leaving the group may wait for ranks that are gone
    return code


@contextmanager
def _lease(config: RunConfig, runtime: Runtime) -> Iterator[Lease | None]:
    """The run folder, held by rank 0 for all. Raises UserError on every rank if that is not possible."""
    with ExitStack() as stack:
        leases: list[Lease] = []

        def take() -> None:
            stale = config.resume.stale_lock_seconds
            leases.append(stack.enter_context(Lease.take(config.run_dir, processes.job_id(), stale_seconds=stale)))
            clean(Path(config.run_dir) / CHECKPOINTS)
            check_space(config)

        runtime.on_main(take)
        yield leases[0] if leases else None


def _nothing_to_do(step: int, config: RunConfig, runtime: Runtime) -> int:
    if runtime.is_main:
        print(f"finished before: {config.run_dir} is at step {step} of training.steps = {config.training.steps}; "
              "raise training.steps to go on", flush=True)  # fmt: skip
    return DONE


class Pretraining:
    """The components of a run on one rank, and what the loop asks of them."""

    def __init__(self, setup: Setup, runtime: Runtime, lease: Lease | None) -> None:
        self.setup, self.runtime, self.config, self.lease = setup, runtime, setup.config, lease
        self.run_dir = Path(self.config.run_dir)
        attempt = self._attempt()
        self.pulse = Pulse(self.config, runtime, attempt)
        self.mesh = Mesh(setup.dims, runtime.rank, self.config.parallel.first_step_timeout_seconds)
        self.engine: Engine = build_engine(self.config, setup.plan, self.mesh, runtime.device, setup.dtype)
        if runtime.is_main:
            self._fill_run_dir()
        self.checkpointer = Checkpointer(
            self.run_dir, runtime.rank,
            MeshEntry(world_size=runtime.world_size, dp_size=self.mesh.dp_size, tp=self.mesh.tp_size,
                      zero_stage=self.config.parallel.zero_stage),
            attempt, keep_last=self.config.checkpoint.keep_last, keep_every=self.config.checkpoint.keep_every,
            writer=lease, alive=self.pulse.alive,
        )  # fmt: skip
        self.resumed = resume(setup, self.engine, runtime)
        self.start_step = self.resumed.step if self.resumed else 0
        self.checkpointer.in_use = self.resumed.folder if self.resumed else None
        self.validation = ValidationLoader(
            setup.val_data, seq_len=self.config.model.seq_len, micro_batch_size=setup.plan.micro_batch_size,
            dp_rank=self.mesh.dp_rank, dp_size=self.mesh.dp_size, max_samples=self.config.training.eval_samples,
            reset_at_document=self.config.data.reset_at_document,
        )  # fmt: skip

    def _fill_run_dir(self) -> None:
        """A run folder describes itself: its settings, and the tokenizer that reads its model."""
        (self.run_dir / "config.toml").write_text(to_toml(self.config), encoding="utf-8")
        (self.run_dir / "tokenizer").mkdir(exist_ok=True)
        save_tokenizer(self.setup.tokenizer, self.run_dir / "tokenizer")

    def run(self) -> int:
        total, is_main = self.config.training.steps, self.runtime.is_main
        timings = Timings(self.pulse.enter, self.runtime.device)
        stopper = Stopper(
            self.run_dir, is_main=is_main, world_size=self.runtime.world_size, device=self.runtime.device,
            taken_over=lambda: self.lease is not None and self.lease.lost,
        )  # fmt: skip
        with stopper, Console(total_steps=total, start_step=self.start_step, enabled=is_main) as self.console:
            if is_main:
                self._say_hello()
            with self._monitor() as self.monitor:
                self.monitor.log_text("config", to_toml(self.config), self.start_step)
                profiler = Profiler(
                    self.config.logging.profile_steps, self.run_dir, rank=self.runtime.rank, device=self.runtime.device
                )
                self.pulse.begin()
                with self._last_save():
                    done = train(self.config, self.engine, self._work(), self.monitor, stopper, profiler, timings,
                                 self.start_step)  # fmt: skip
        code = self._say_goodbye(done, stopper.reason)
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
        self.checkpointer.wait()

    def _work(self) -> Work:
        return Work(
            batches=lambda step: map(self._to_device, self.setup.loader.step(step)),
            seed=self._seed_dropout,
            mean=self._mean,
            explain=self._explain,
            position=lambda step: self.setup.loader.position(step)[:2],
            evaluate=self._evaluate,
            sample=self._sample,
            save=self._save,
            poll=self._after_step,
            share=self._share,
        )

    def _after_step(self) -> None:
        self.checkpointer.poll()
        self.pulse.stepped()

    def _share(self, x: float) -> list[float]:
        """Every rank's number, by one sum."""
        numbers = torch.zeros(self.runtime.world_size, device=self.runtime.device)
        numbers[self.runtime.rank] = x
        if self.mesh.distributed:
            dist.all_reduce(numbers)
        return numbers.tolist()

    def _to_device(self, batch: Batch) -> Batch:
        return batch.to(self.runtime.device)

    def _seed_dropout(self, step: int, micro_step: int) -> None:
        """So that resumed = uninterrupted without saving generators: alike on all TP ranks, other on each DP rank."""
        if self.config.model.dropout:
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

    def _evaluate(self, done: int) -> None:
        if not len(self.validation):
            self.console.print(f"no validation: {self.validation.why_empty}")
            return
        self.engine.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.runtime.device)  # of loss x rows, of rows
        with torch.no_grad():
            for batch in map(self._to_device, self.validation):
                self.pulse.enter(done, "evaluate")
                loss = self.engine(batch.tokens, batch.targets, batch.documents)
                sums += torch.stack((loss.double() * batch.valid, torch.full_like(sums[0], batch.valid)))
        self.engine.model.train()
        loss_sum, rows = self._sum(sums).tolist()
        self.monitor.log_eval(done, loss_sum / rows)

    def _sample(self, done: int) -> None:
        text = preview(self.engine, self.setup.tokenizer, self.config, self.runtime.device, self.pulse.alive)
        self.monitor.log_text("sample", text, done)

    def _save(self, done: int, loss: float) -> None:
        samples = done * self.setup.plan.global_batch_size
        meta = Meta(
            tokens=samples * self.config.model.seq_len, samples=samples, loss=loss, data_hash=self.setup.data_hash,
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
            tokens_per_step=config.training.global_batch_size * config.model.seq_len,
            flops_per_token=flops_per_token(config.model), world_size=self.runtime.world_size, device=device,
            console=self.console, nodes=self.runtime.gather(processes.node()), peak_flops=peak_flops(name, kind),  # type: ignore[arg-type]
        )  # fmt: skip

    def _say_hello(self) -> None:
        config, plan, dims = self.config, self.setup.plan, self.setup.dims
        epochs = self.setup.loader.position(config.training.steps).epoch
        lines = (
            f"model: {config.model.shape}, {parameter_count(config.model) / 1e6:,.1f}M parameters, {self.setup.dtype}",
            f"topology: {dims.world_size} ranks = dp {dims.dp} x tp {dims.tp}, ZeRO {config.parallel.zero_stage}",
            f"batch: {plan.global_batch_size} x {config.model.seq_len} tokens in {plan.grad_accum_steps} micro steps",
            f"data: {self.setup.train_data.n_tokens:,} tokens in {config.data.path}, {epochs:.2f} epochs of them",
            *describe(self.setup, self.resumed),
        )
        for line in lines:
            self.console.print(line)

    def _say_goodbye(self, done: int, reason: str) -> int:
        """Raises TrainingError if the last save failed."""
        if self.checkpointer.saved_step != done:
            raise TrainingError(NOT_SAVED.format(step=done))
        stopped = done < self.config.training.steps
        if self.runtime.is_main:
            goodbye = f"stopped by {reason} at step {done}, saved; the same command goes on from here"
            print(goodbye if stopped else f"finished: step {done}, {self.run_dir}", flush=True)
        return STOPPED if stopped else DONE
