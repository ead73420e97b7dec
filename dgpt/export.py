"""A model to hand on: one folder of weights, settings and tokenizer, from which `dgpt generate` needs nothing else."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dgpt.checkpoint import rewrite
from dgpt.checkpoint.compatible import read_config
from dgpt.checkpoint.find import Found
from dgpt.checkpoint.format import CheckpointError, Manifest
from dgpt.checkpoint.progress import byte_bar
from dgpt.checkpoint.weights import WEIGHT
from dgpt.checkpoint.whole import check_files, files_of, read_tensor, tensor_bytes
from dgpt.config import ModelConfig, to_toml
from dgpt.generate import choose, tokenizer_of
from dgpt.huggingface.card import Facts
from dgpt.huggingface.export import write
from dgpt.huggingface.settings import Task
from dgpt.huggingface.tensors import shapes
from dgpt.storage import Place


class Exported(NamedTuple):
    """What was written."""

    step: int
    bytes: int


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(source: str | Place, output: Place, dtype: str = "fp32", *, progress: bool = False) -> Exported:
    """Write the weights of a checkpoint, or of a run's newest one, to a new folder or URL.

    Raises UserError, and leaves nothing behind, if there is no whole source or `output` cannot be made.
    """
    found = choose(source)
    manifest = rewrite.export(found, output, DTYPES[dtype], _beside(found), progress=progress)
    return Exported(manifest.step, manifest.bytes)


def export_huggingface(
    source: str | Place, output: Place, dtype: str, max_shard_bytes: int, *, progress: bool = False
) -> Exported:
    """Write a model to a new folder or URL that `transformers` loads: as `export`, but for the format."""
    found = choose(source)
    tokenizer, facts = tokenizer_of(found), Facts.of(found.manifest)
    config = read_config(found).model
    names = _weights(found, config, facts.task)
    files = files_of(found, [WEIGHT])
    total = tensor_bytes(found, [WEIGHT]) + sum(file.size for file in files)
    with byte_bar(f"writing {output.name}", total, enabled=progress) as advance:

        def tensors() -> Iterator[tuple[str, Tensor]]:
            check_files(found, files, advance)
            for name in names:
                yield name, read_tensor(found, found.manifest.tensor_ids[name], WEIGHT, advance)

        size = write(output, config, tokenizer, tensors(), facts, dtype=DTYPES[dtype], max_shard_bytes=max_shard_bytes)
    return Exported(found.manifest.step, size)


def _weights(found: Found, config: ModelConfig, task: Task) -> Sequence[str]:
    """Names of the parameters, in the model's order. Raises CheckpointError unless the checkpoint holds just these."""
    wanted = shapes(config, task.kind, task.outputs)
    held = {tensor.name: tensor.shape for tensor in found.manifest.tensors if WEIGHT in tensor.states}
    if difference := sorted(wanted.items() ^ held.items()):
        name = difference[0][0]
        raise CheckpointError(found.folder, f"holds '{name}' as {held.get(name)}, its settings as {wanted.get(name)}",
                              fix="give another checkpoint")  # fmt: skip
    return list(wanted)


def average(sources: Sequence[str | Place], output: Place, *, progress: bool = False) -> Manifest:
    """Write the mean of the weights of several checkpoints, as `export` does, with the settings of the newest."""
    found = [choose(source) for source in sources]
    return rewrite.average(found, output, _beside(rewrite.newest_of(found)), progress=progress)


def _beside(found: Found) -> dict[str, bytes]:
    """Files that make a checkpoint's folder complete, by name."""
    tokenizer = {f"tokenizer/{name}": content for name, content in tokenizer_of(found).files().items()}
    return {"config.toml": to_toml(read_config(found)).encode(), **tokenizer}
