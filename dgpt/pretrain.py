"""`dgpt pretrain`: a config becomes components, and the components a trained model."""

from collections.abc import Iterator

from dgpt import runtime as processes
from dgpt.config import RunConfig
from dgpt.data.loader import ValidationLoader
from dgpt.lease import Lease
from dgpt.model.flops import flops_per_token, parameter_count
from dgpt.parallel.engine import Engine, build_engine
from dgpt.preview import preview
from dgpt.resume import describe
from dgpt.run import Run, start
from dgpt.runtime import Runtime
from dgpt.setup import PretrainSetup, check
from dgpt.train.loop import GO_ON, Verdict


def pretrain(config: RunConfig) -> int:
    """Train the run on this process and its peers; returns the exit code: done, or stopped after a save.

    Raises UserError before the first collective, and TrainingError when a loss is not finite.
    """
    runtime = processes.identify()
    return start(check(config, runtime), runtime, Pretraining)


class Pretraining(Run):
    """A run that learns to continue the token shards of `dgpt prepare`."""

    setup: PretrainSetup
    config: RunConfig

    def __init__(self, setup: PretrainSetup, runtime: Runtime, lease: Lease | None) -> None:
        super().__init__(setup, runtime, lease)
        self.validation = ValidationLoader(
            setup.val_data, seq_len=self.config.model.seq_len, micro_batch_size=setup.plan.micro_batch_size,
            dp_rank=self.mesh.dp_rank, dp_size=self.mesh.dp_size, max_samples=self.config.training.eval_samples,
            reset_at_document=self.config.data.reset_at_document,
        )  # fmt: skip

    def build_engine(self) -> Engine:
        return build_engine(self.config, self.setup.plan, self.mesh, self.runtime.device, self.setup.dtype)

    def evaluate(self, done: int) -> Verdict:
        if len(self.validation):
            self.monitor.log_eval(done, self.mean_loss(self.validation))
        else:
            self.console.print(f"no validation: {self.validation.why_empty}")
        return GO_ON

    def sample(self, done: int) -> None:
        text = preview(self.engine, self.setup.tokenizer, self.config, self.runtime.device)
        self.monitor.log_text("sample", text, done)

    def flops_per_token(self) -> float:
        return flops_per_token(self.config.model)

    def hello(self) -> Iterator[str]:
        config, plan, dims = self.config, self.setup.plan, self.setup.dims
        epochs = self.setup.loader.position(config.training.steps).epoch
        yield f"model: {config.model.shape}, {parameter_count(config.model) / 1e6:,.1f}M parameters, {self.setup.dtype}"
        yield f"topology: {dims.world_size} ranks = dp {dims.dp} x tp {dims.tp}, ZeRO {config.parallel.zero_stage}"
        yield f"batch: {plan.global_batch_size} x {config.model.seq_len} tokens in {plan.grad_accum_steps} micro steps"
        yield f"data: {self.setup.train_data.n_tokens:,} tokens in {config.data.path}, {epochs:.2f} epochs of them"
        yield from describe(self.setup, self.resumed)
