"""Checkpoints: sharded safetensors and one manifest, loaded at any topology. The format: docs/checkpoints.md."""

from dgpt.checkpoint.compatible import check_model, read_config
from dgpt.checkpoint.find import Found, find_latest, open_checkpoint
from dgpt.checkpoint.format import CheckpointError, Manifest, MeshEntry, Meta
from dgpt.checkpoint.load import load, load_weights
from dgpt.checkpoint.report import Row, list_checkpoints, show, verify
from dgpt.checkpoint.save import Checkpointer

__all__ = [
    "CheckpointError", "Checkpointer", "Found", "Manifest", "MeshEntry", "Meta", "Row", "check_model", "find_latest",
    "list_checkpoints", "load", "load_weights", "open_checkpoint", "read_config", "show", "verify",
]  # fmt: skip
