"""`dgpt finetune`: a trained model and the examples of a task become a model for that task."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dgpt import lora
from dgpt import runtime as processes
from dgpt.checkpoint.best import write_best
from dgpt.checkpoint.files import step_folder
from dgpt.config import FinetuneConfig
from dgpt.finetune_setup import FinetuneSetup, check, trained_parameters
from dgpt.finetuned import new_model
from dgpt.generate import choose
from dgpt.lease import Lease
from dgpt.model.flops import flops_per_token, parameter_count
from dgpt.parallel.engine import prepare_blocks
from dgpt.parallel.engine_accelerate import AccelerateEngine
from dgpt.parallel.engine_accelerate_zero import AccelerateZeroEngine
from dgpt.resume import describe
from dgpt.run import Run
from dgpt.runtime import Runtime
from dgpt.setup import Setup
from dgpt.start import start
from dgpt.tasks.base import Scores
from dgpt.tasks.loader import held_out_batches
from dgpt.train.best import Best, measured
from dgpt.train.loop import GO_ON, Verdict
from dgpt.train.metrics import perplexity


def finetune(config: FinetuneConfig) -> int:
    """Train on this process and its peers; returns the exit code: done, or stopped after a save.

    Raises UserError before the first collective, and TrainingError when a loss is not finite.
    """
    runtime = processes.identify()
    return start(check(config, runtime), runtime, Finetuning)


class Finetuning(Run):
    """A run that learns a task."""

    setup: FinetuneSetup
    config: FinetuneConfig
    engine: AccelerateEngine | AccelerateZeroEngine

    def __init__(self, setup: FinetuneSetup, runtime: Runtime, lease: Lease | None) -> None:
        super().__init__(setup, runtime, lease)
        self._named = 0  # step of the checkpoint that best.json names
        self.best = Best(self.config.best, runtime.on_main(partial(_results_before, setup, self.start_step)))

    @classmethod
    def finished_before(cls, setup: Setup, step: int) -> str:
        assert isinstance(setup, FinetuneSetup)
        best = Best(setup.config.best, _results_before(setup, step))
        if best.enough:
            return (f"{setup.config.run_dir} ended early at step {step}, its best is {best}; "
                    "raise best.patience to go on")  # fmt: skip
        return super().finished_before(setup, step)

    @classmethod
    def trained_parameters(cls, setup: Setup) -> int:
        assert isinstance(setup, FinetuneSetup)
        return trained_parameters(setup.config)

    def build_engine(self) -> AccelerateEngine | AccelerateZeroEngine:
        """Base -> head of the task -> LoRA -> activation checkpointing -> optimizer and processes."""
        config, setup, device = self.config, self.setup, self.runtime.device
        sharded = config.parallel.zero_stage == 3  # then the whole model may not fit on the device
        model = new_model(setup.base, setup.task, config, torch.device("cpu") if sharded else device)
        self.adapted = lora.apply(model, config) if config.lora.rank else None
        trainable = lora.trainable(self.adapted) if self.adapted else dict(model.named_parameters())
        self.n_trained = sum(parameter.numel() for parameter in trainable.values())
        prepare_blocks(model, config)
        kind = AccelerateZeroEngine if config.parallel.zero_stage else AccelerateEngine
        return kind(model, trainable, config, setup.plan, self.mesh, device, setup.dtype)

    @property
    def has_dropout(self) -> bool:
        return self.config.model.dropout > 0 or self.config.lora.dropout > 0

    def flops_per_token(self) -> float:
        return flops_per_token(self.config.model)

    def evaluate(self, done: int) -> Verdict:
        held_out, rows = self.setup.held_out, self.setup.plan.micro_batch_size
        if not held_out.samples:
            self.console.print("no held-out examples: nothing is measured, and the newest checkpoint is the best")
            return GO_ON
        batches = held_out_batches(self.setup.task, held_out.samples, rows, self.mesh.dp_rank, self.mesh.dp_size)
        results = {"loss": self.mean_loss(done, batches)}
        if self.config.task.is_language_model:
            results["perplexity"] = perplexity(results["loss"])
        if self.config.parallel.zero_stage < 3:  # its weights are gathered by all ranks together, in every forward pass
            results |= self._scores(done)
        self.monitor.log_results(done, results)
        better = self.best.note(done, results[self.config.best.metric])
        return Verdict(save=better and self.config.best.keep, stop=self.best.enough)

    def _scores(self, done: int) -> Scores:
        """Of the answers to the held-out queries, which the ranks share."""
        task, held_out, model = self.setup.task, self.setup.held_out, self.engine.model
        model.eval()
        with torch.no_grad(), self.engine.accelerator.autocast():
            queries = held_out.queries[self.mesh.dp_rank :: self.mesh.dp_size]
            with self._heard():
                mine = list(task.answers(model, queries, self.setup.plan.micro_batch_size))
        model.train()
        self.pulse.enter(done, "evaluate")  # ahead of the ranks that it waits for
        with self.pulse.patient():
            shares = self.runtime.gather(mine)
            answers = [shares[i % len(shares)][i // len(shares)] for i in range(len(held_out.queries))]
            if self.runtime.is_main and answers and (picture := task.picture(held_out.golds, answers)) is not None:
                self._show(picture, done)
            return self.runtime.on_main(lambda: task.scores(held_out.golds, answers) if answers else {})

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """A sign of life at each forward pass: a batch of long answers takes minutes, and each token of it one pass."""
        handle = self.engine.model.wte.register_forward_pre_hook(lambda *_: self.pulse.alive())
        try:
            yield
        finally:
            handle.remove()

    def _show(self, picture: NDArray[np.uint8], done: int) -> None:
        """In TensorBoard, and the newest one as run_dir/confusion_matrix.png; a full disk costs it and no run."""
        from matplotlib.image import imsave

        self.monitor.log_image("confusion_matrix", picture, done)
        try:
            imsave(self.run_dir / "confusion_matrix.png", picture)
        except OSError as error:
            self.console.print(f"PICTURE NOT WRITTEN, and training goes on: {error}")

    def settled(self) -> None:
        """Name the best checkpoint as soon as its save has ended well."""
        if not self.runtime.is_main or not self.config.best.keep or self.best.step == self._named:
            return
        folder = step_folder(self.checkpointer.root, self.best.step)
        ended_well = self.best.step <= self.start_step or self.best.step in self.checkpointer.saved
        if ended_well and folder.exists():
            self._named = self.best.step
            write_best(self.run_dir, folder, {self.config.best.metric: self.best.value})

    def save(self, done: int, loss: float) -> None:
        self.checkpointer.wait_for_save()
        self.settled()  # before the next save may prune
        super().save(done, loss)

    def conclude(self) -> None:
        """Write the updates of LoRA to run_dir/adapter, as `peft` reads them: of the best checkpoint."""
        if self.adapted is not None and self.runtime.is_main:
            lora.write_adapter(choose(self.run_dir), self.engine.model, self.config, self.run_dir / lora.FOLDER)

    def goodbye(self, done: int) -> str:
        early = done < self.config.training.steps
        why = f" early, {self.best.worse} evaluations after the best" * early
        best = f"; best {self.best}" * bool(self.best.step)
        return f"finished{why}: step {done}, {self.run_dir}{best}"

    def hello(self) -> Iterator[str]:
        config, plan, setup = self.config, self.setup.plan, self.setup
        how = f"LoRA of rank {config.lora.rank}" if config.lora.rank else "all weights"
        yield f"base: {config.base}, {parameter_count(config.model) / 1e6:,.1f}M parameters"
        yield f"task: {config.task.kind}, {how}: {self.n_trained / 1e6:,.2f}M parameters to train, {setup.dtype}"
        held_out = sum(map(len, setup.held_out.samples))
        yield f"examples: {setup.n_examples:,} in {len(setup.loader.samples):,} sequences; {held_out:,} held out"
        yield from setup.notes
        yield (f"batch: {plan.global_batch_size} sequences in {plan.grad_accum_steps} micro steps on {plan.dp_size} "
               f"processes; {config.training.steps} steps")  # fmt: skip
        yield from describe(setup, self.resumed)


def _results_before(setup: FinetuneSetup, step: int) -> list[tuple[int, float]]:
    return list(measured(Path(setup.config.run_dir) / "metrics.jsonl", setup.config.best.metric, step))
