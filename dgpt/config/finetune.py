"""FinetuneConfig: one fine-tuning of a trained model, whose shape and tokenizer come with it and are not repeated."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dgpt.config.run import (
    check_rules,
    hang_before_timeout,
    lock_before_timeout,
    micro_divides_global,
    min_lr_below_lr,
    warmup_fits,
)
from dgpt.config.schema import (
    ActivationCheckpointingConfig,
    CheckpointConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    ResumeConfig,
    ScheduleConfig,
    SlurmConfig,
    TrainingConfig,
    WaitingConfig,
)
from dgpt.config.section import FolderName, Fraction, NotNegative, Positive, Section
from dgpt.config.task import TaskConfig, TaskDataConfig

LINEAR_LAYERS = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.up", "mlp.gate", "mlp.down")


class LoraConfig(Section):
    rank: NotNegative = 0
    """Rank of the low-rank updates (arXiv:2106.09685); 0 trains all weights."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The updates are scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Probability of zeroing an input of the updates in training."""
    targets: tuple[Literal[LINEAR_LAYERS], ...] = ("attn.q", "attn.k", "attn.v", "attn.proj")  # type: ignore[valid-type]
    """Layers that get updates, of attn.q attn.k attn.v attn.proj mlp.up mlp.gate mlp.down."""

    @model_validator(mode="after")
    def check_targets(self) -> Self:
        if self.rank and not self.targets:
            raise ValueError(f"targets = [] with rank = {self.rank}: nothing would be trained; name a layer or more")
        return self


class FinetuneOptimizerConfig(OptimizerConfig):
    lr: Annotated[float, Field(gt=0)] = 5e-5
    """Peak learning rate of AdamW; LoRA takes about ten times as much."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of the first and second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled decay of matrices and embeddings; norms and biases have none."""


class FinetuneScheduleConfig(ScheduleConfig):
    warmup_steps: NotNegative = 0
    """Steps of linear growth from 0 to lr."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the last step."""


class FinetuneParallelConfig(WaitingConfig):
    zero_stage: Literal[0, 1, 2, 3] = 0
    """0: each process has all (DDP); DeepSpeed shards what does not fit: 1 optimizer state, 2 gradients, 3 weights."""
    offload_optimizer: bool = False
    """Keep the optimizer state in host memory (ZeRO 1 to 3 on GPUs)."""


class FinetuneTrainingConfig(TrainingConfig):
    steps: NotNegative = 0
    """Optimizer steps of the whole run; 0 takes them from epochs."""
    epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the training examples, if steps is 0."""
    global_batch_size: Positive = 32
    """Sequences per optimizer step, over all ranks; with data.packing a sequence holds several examples."""
    eval_every_steps: NotNegative = 100
    """Steps between evaluations on the held-out examples; 0 never."""
    eval_samples: Positive = 1000
    """Held-out examples of an evaluation, at most; drawn by `seed`."""
    eval_generations: NotNegative = 64
    """Of these, answered word by word, at most (generation, generative_qa); drawn by `seed`."""
    dropout: Fraction = 0.0
    """Probability of zeroing an activation in training, in place of the base's."""


class BestConfig(Section):
    metric: str = "loss"
    """Which result on held-out examples decides: loss, perplexity, accuracy, macro_f1, exact_match, f1, rouge_l."""
    keep: bool = True
    """Save when an evaluation is the best so far, name that checkpoint in run_dir/best.json and never prune it."""
    patience: NotNegative = 0
    """Evaluations without a better result after which the run ends early; 0 never."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """A result is better only if it is better by more than this."""


class FinetuneConfig(Section):
    verb: ClassVar[str] = "finetune"

    run_dir: FolderName = "runs/finetune"
    """Folder of this run: config, checkpoints, metrics, logs."""
    base: str = ""
    """The trained model: a run folder, a checkpoint or an export; `dgpt import` makes an export of other models."""
    base_hash: str = ""
    """sha256 of the base's manifest; filled in."""
    seed: NotNegative = 1337
    """Seed of new weights, example order and dropout."""
    task: TaskConfig = TaskConfig()
    data: TaskDataConfig = TaskDataConfig()
    lora: LoraConfig = LoraConfig()
    model: ModelConfig = ModelConfig()
    optimizer: FinetuneOptimizerConfig = FinetuneOptimizerConfig()
    schedule: FinetuneScheduleConfig = FinetuneScheduleConfig()
    parallel: FinetuneParallelConfig = FinetuneParallelConfig()
    activation_checkpointing: ActivationCheckpointingConfig = ActivationCheckpointingConfig()
    precision: PrecisionConfig = PrecisionConfig()
    training: FinetuneTrainingConfig = FinetuneTrainingConfig()
    best: BestConfig = BestConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resume: ResumeConfig = ResumeConfig()
    slurm: SlurmConfig = SlurmConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def check_across_sections(self) -> Self:
        check_rules(self, (min_lr_below_lr, _warmup_fits, micro_divides_global, lock_before_timeout,
                           hang_before_timeout, _metric_is_known))  # fmt: skip
        return self


def _warmup_fits(c: FinetuneConfig) -> Iterator[str]:
    if c.training.steps:  # else once the number of examples is known
        yield from warmup_fits(c)


def _metric_is_known(c: FinetuneConfig) -> Iterator[str]:
    if c.best.metric not in c.task.metrics:
        yield (f"best.metric = '{c.best.metric}' is no result of task.kind = '{c.task.kind}'; "
               f"it has {', '.join(c.task.metrics)}")  # fmt: skip
    of_answers = c.best.metric not in ("loss", "perplexity")
    if of_answers and c.task.is_language_model and not c.training.eval_generations:
        yield (f"best.metric = '{c.best.metric}' with training.eval_generations = 0, where only the loss is measured; "
               "set best.metric = 'loss', or training.eval_generations = 64")  # fmt: skip
    if of_answers and c.parallel.zero_stage == 3:
        yield (f"best.metric = '{c.best.metric}' with parallel.zero_stage = 3, where only the loss is measured; "
               "set best.metric = 'loss', or a lower zero_stage")  # fmt: skip
