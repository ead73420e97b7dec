"""A model to hand on: one folder of weights, settings and tokenizer, from which `dgpt generate` needs nothing else."""

from collections.abc import Sequence

import torch

from dgpt.checkpoint import rewrite
from dgpt.checkpoint.compatible import read_config
from dgpt.checkpoint.find import Found
from dgpt.checkpoint.format import Manifest
from dgpt.config import to_toml
from dgpt.generate import choose, tokenizer_of
from dgpt.storage import Place

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(source: str | Place, output: Place, dtype: str = "fp32", *, progress: bool = False) -> Manifest:
    """Write the weights of a checkpoint, or of a run's newest one, to a new folder or URL.

    Raises UserError, and leaves nothing behind, if there is no whole source or `output` cannot be made.
    """
    found = choose(source)
    return rewrite.export(found, output, DTYPES[dtype], _beside(found), progress=progress)


def average(sources: Sequence[str | Place], output: Place, *, progress: bool = False) -> Manifest:
    """Write the mean of the weights of several checkpoints, as `export` does, with the settings of the newest."""
    found = [choose(source) for source in sources]
    return rewrite.average(found, output, _beside(rewrite.newest_of(found)), progress=progress)


def _beside(found: Found) -> dict[str, bytes]:
    """Files that make a checkpoint's folder complete, by name."""
    tokenizer = {f"tokenizer/{name}": content for name, content in tokenizer_of(found).files().items()}
    return {"config.toml": to_toml(read_config(found)).encode(), **tokenizer}
