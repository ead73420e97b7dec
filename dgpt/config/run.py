"""RunConfig: one complete run, and the rules that hold between its sections."""

from collections.abc import Iterator
from typing import Self

from pydantic import model_validator

from dgpt.config.data import DataConfig, TokenizerConfig
from dgpt.config.schema import (
    ActivationCheckpointingConfig,
    CheckpointConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    ResumeConfig,
    ScheduleConfig,
    SlurmConfig,
    TrainingConfig,
)
from dgpt.config.section import NotNegative, Section


class RunConfig(Section):
    run_dir: str = "runs/default"
    """Folder of this run: config, checkpoints, metrics, logs."""
    seed: NotNegative = 1337
    """Seed of weights, data order and dropout."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: ParallelConfig = ParallelConfig()
    activation_checkpointing: ActivationCheckpointingConfig = ActivationCheckpointingConfig()
    precision: PrecisionConfig = PrecisionConfig()
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resume: ResumeConfig = ResumeConfig()
    slurm: SlurmConfig = SlurmConfig()
    logging: LoggingConfig = LoggingConfig()

    @property
    def tp_sizes(self) -> dict[str, int]:
        """What tensor parallelism cuts, by name: parallel.tp must divide each."""
        m = self.model
        return {"model.n_head": m.n_head, "model.n_kv_head": m.kv_heads, "the MLP width (model.n_ff)": m.ff_width,
                f"the padded vocabulary (model.vocab_multiple = {m.vocab_multiple})": m.padded_vocab_size}  # fmt: skip

    @model_validator(mode="after")
    def check_across_sections(self) -> Self:
        rules = (
            _min_lr_below_lr,
            _warmup_fits,
            _tp_divides,
            _sequence_divides,
            _micro_divides_global,
            _lock_before_timeout,
        )
        if problems := [problem for rule in rules for problem in rule(self)]:
            raise ValueError("\n".join(problems))
        return self


def _min_lr_below_lr(c: RunConfig) -> Iterator[str]:
    if c.schedule.min_lr > c.optimizer.lr:
        yield f"schedule.min_lr = {c.schedule.min_lr} is above optimizer.lr = {c.optimizer.lr}; lower it"


def _warmup_fits(c: RunConfig) -> Iterator[str]:
    used = c.schedule.warmup_steps + (c.schedule.decay_steps if c.schedule.kind == "wsd" else 0)
    if used > c.training.steps:
        yield (f"schedule.warmup_steps = {c.schedule.warmup_steps} and decay_steps = {c.schedule.decay_steps} "
               f"take {used} steps of training.steps = {c.training.steps}; "
               f"for example schedule.warmup_steps={c.training.steps // 10}")  # fmt: skip


def _tp_divides(c: RunConfig) -> Iterator[str]:
    tp = c.parallel.tp
    for name, size in c.tp_sizes.items():
        if size % tp:
            yield f"parallel.tp = {tp} must divide {name} = {size}; take a divisor of both or change the model"


def _sequence_divides(c: RunConfig) -> Iterator[str]:
    if c.parallel.sequence_parallel and c.model.seq_len % c.parallel.tp:
        yield f"parallel.tp = {c.parallel.tp} must divide model.seq_len = {c.model.seq_len} with sequence_parallel"


def _micro_divides_global(c: RunConfig) -> Iterator[str]:
    t = c.training
    if t.global_batch_size % t.micro_batch_size:
        yield (f"training.global_batch_size = {t.global_batch_size} must be a multiple of "
               f"training.micro_batch_size = {t.micro_batch_size}; change one of them")  # fmt: skip


def _lock_before_timeout(c: RunConfig) -> Iterator[str]:
    if c.resume.stale_lock_seconds >= c.parallel.timeout_seconds:
        yield (f"resume.stale_lock_seconds = {c.resume.stale_lock_seconds} must be below parallel.timeout_seconds = "
               f"{c.parallel.timeout_seconds}: the other ranks wait for the one that waits for the lock")  # fmt: skip
