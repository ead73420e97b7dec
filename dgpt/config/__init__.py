"""The settings of a run: models, loading, batch arithmetic. Imports the standard library and pydantic alone."""

from dgpt.config.batch import BatchPlan, batch_plan
from dgpt.config.data import DataConfig, SourceConfig, TokenizerConfig
from dgpt.config.finetune import FinetuneConfig, LoraConfig
from dgpt.config.help import settings_help
from dgpt.config.load import flat, load_config, load_settings, parse_config, parse_settings, to_toml
from dgpt.config.run import LoopConfig, RunConfig
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
from dgpt.config.section import Section
from dgpt.config.task import TaskConfig, TaskDataConfig

__all__ = [
    "ActivationCheckpointingConfig", "BatchPlan", "CheckpointConfig", "DataConfig", "FinetuneConfig", "LoggingConfig",
    "LoopConfig", "LoraConfig", "ModelConfig", "OptimizerConfig", "ParallelConfig", "PrecisionConfig", "ResumeConfig",
    "RunConfig", "ScheduleConfig", "Section", "SlurmConfig", "SourceConfig", "TaskConfig", "TaskDataConfig",
    "TokenizerConfig", "TrainingConfig", "batch_plan", "flat", "load_config", "load_settings", "parse_config",
    "parse_settings", "settings_help", "to_toml",
]  # fmt: skip
