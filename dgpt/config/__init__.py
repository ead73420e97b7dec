"""The settings of a run: models, loading, batch arithmetic. Imports the standard library and pydantic alone."""

from dgpt.config.batch import BatchPlan, batch_plan
from dgpt.config.data import DataConfig, SourceConfig, TokenizerConfig
from dgpt.config.help import settings_help
from dgpt.config.load import flat, load_config, parse_config, to_toml
from dgpt.config.run import RunConfig
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

__all__ = [
    "ActivationCheckpointingConfig", "BatchPlan", "CheckpointConfig", "DataConfig", "LoggingConfig", "ModelConfig",
    "OptimizerConfig", "ParallelConfig", "PrecisionConfig", "ResumeConfig", "RunConfig", "ScheduleConfig",
    "SlurmConfig", "SourceConfig", "TokenizerConfig", "TrainingConfig", "batch_plan", "flat", "load_config",
    "parse_config", "settings_help", "to_toml",
]  # fmt: skip
