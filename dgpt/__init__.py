"""dgpt: distributed pretraining of GPT language models (DeepSpeed ZeRO x tensor parallelism)."""

__version__ = "0.1.0"
