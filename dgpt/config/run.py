"""RunConfig: one complete run, and the rules that hold between its sections."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Protocol, Self, TypeVar

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
from dgpt.config.section import FolderName, NotNegative, Section


class LoopConfig(Protocol):
    """What the training loop and the objects beside it read of a run, be it a pretraining or a fine-tuning."""

    @property
    def run_dir(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def model(self) -> ModelConfig: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def schedule(self) -> ScheduleConfig: ...
    @property
    def precision(self) -> PrecisionConfig: ...
    @property
    def activation_checkpointing(self) -> ActivationCheckpointingConfig: ...
    @property
    def training(self) -> TrainingConfig: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...
    @property
    def resume(self) -> ResumeConfig: ...
    @property
    def slurm(self) -> SlurmConfig: ...
    @property
    def logging(self) -> LoggingConfig: ...
    @property
    def data(self) -> "DataPlace": ...
    @property
    def parallel(self) -> "Processes": ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


class DataPlace(Protocol):
    @property
    def path(self) -> str: ...


class Processes(Protocol):
    @property
    def zero_stage(self) -> int: ...
    @property
    def first_step_timeout_seconds(self) -> int: ...
    @property
    def timeout_seconds(self) -> int: ...
    @property
    def hang_seconds(self) -> int: ...


C = TypeVar("C", bound=LoopConfig)


def check_rules(config: C, rules: Iterable[Callable[[C], Iterator[str]]]) -> None:
    """Raises ValueError with the lines of all rules that are broken."""
    if problems := [problem for rule in rules for problem in rule(config)]:
        raise ValueError("\n".join(problems))


class RunConfig(Section):
    verb: ClassVar[str] = "pretrain"

    run_dir: FolderName = "runs/default"
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
        check_rules(self, (min_lr_below_lr, warmup_fits, _tp_divides, _sequence_divides, micro_divides_global,
                           lock_before_timeout, hang_before_timeout))  # fmt: skip
        return self


def min_lr_below_lr(c: LoopConfig) -> Iterator[str]:
    if c.schedule.min_lr > c.optimizer.lr:
        yield f"schedule.min_lr = {c.schedule.min_lr} is above optimizer.lr = {c.optimizer.lr}; lower it"


def warmup_fits(c: LoopConfig) -> Iterator[str]:
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


def micro_divides_global(c: LoopConfig) -> Iterator[str]:
    t = c.training
    if t.global_batch_size % t.micro_batch_size:
        yield (f"training.global_batch_size = {t.global_batch_size} must be a multiple of "
               f"training.micro_batch_size = {t.micro_batch_size}; change one of them")  # fmt: skip


def lock_before_timeout(c: LoopConfig) -> Iterator[str]:
    if c.resume.stale_lock_seconds >= c.parallel.first_step_timeout_seconds:
        yield (f"resume.stale_lock_seconds = {c.resume.stale_lock_seconds} must be below "
               f"parallel.first_step_timeout_seconds = {c.parallel.first_step_timeout_seconds}: "
               "the other ranks wait for the one that waits for the lock")  # fmt: skip


def hang_before_timeout(c: LoopConfig) -> Iterator[str]:
    if c.parallel.hang_seconds >= c.parallel.timeout_seconds:
        yield (f"parallel.hang_seconds = {c.parallel.hang_seconds} must be below parallel.timeout_seconds = "
               f"{c.parallel.timeout_seconds}, or the ranks end before anybody can say which one hangs; "
               f"for example parallel.hang_seconds={c.parallel.timeout_seconds * 3 // 4}")  # fmt: skip
