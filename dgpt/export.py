"""A model to hand on: one folder of weights, settings and tokenizer, from which `dgpt generate` needs nothing else."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dgpt.checkpoint import rewrite
from dgpt.checkpoint.compatible import read_config
from dgpt.checkpoint.find import Found
from dgpt.checkpoint.format import DTYPE_NAMES, CheckpointError, FileEntry, Manifest
from dgpt.checkpoint.progress import Advance, byte_bar
from dgpt.checkpoint.weights import WEIGHT, new_checkpoint, whole_entry
from dgpt.checkpoint.whole import check_files, files_of, read_tensor, tensor_bytes
from dgpt.config import FinetuneConfig, LoraConfig, ModelConfig, RunConfig, to_toml
from dgpt.data.chat import JINJA
from dgpt.generate import choose, tokenizer_of, use_whole
from dgpt.huggingface.card import Facts
from dgpt.huggingface.export import write
from dgpt.huggingface.settings import Task
from dgpt.huggingface.tensors import shapes
from dgpt.storage import Place


class Exported(NamedTuple):
    """What was written."""

    step: int
    bytes: int


Config = RunConfig | FinetuneConfig
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(source: str | Place, output: Place, dtype: str = "fp32", *, progress: bool = False) -> Exported:
    """Write the weights of a checkpoint, or of a run's newest one, to a new folder or URL; LoRA merged into its base.

    Raises UserError, and leaves nothing behind, if there is no whole source or `output` cannot be made.
    """
    return use_whole(source, lambda found: _export(found, output, dtype, progress))


def _export(found: Found, output: Place, dtype: str, progress: bool) -> Exported:
    config = read_config(found)
    if _is_lora(config):
        manifest = _export_merged(found, output, DTYPES[dtype])
    else:
        manifest = rewrite.export(found, output, DTYPES[dtype], _beside(found, config), progress=progress)
    return Exported(manifest.step, manifest.bytes)


def export_huggingface(
    source: str | Place, output: Place, dtype: str, max_shard_bytes: int, *, progress: bool = False
) -> Exported:
    """Write a model to a new folder or URL that `transformers` loads: as `export`, but for the format."""
    return use_whole(source, lambda found: _export_huggingface(found, output, dtype, max_shard_bytes, progress))


def _export_huggingface(found: Found, output: Place, dtype: str, max_shard_bytes: int, progress: bool) -> Exported:
    tokenizer, facts, config = tokenizer_of(found), Facts.of(found.manifest), read_config(found)
    template = JINJA if isinstance(config, FinetuneConfig) and config.task.chat else ""
    files = [] if _is_lora(config) else files_of(found, [WEIGHT])
    total = sum(file.size for file in files) + tensor_bytes(found, [WEIGHT])
    with byte_bar(f"writing {output.name}", total, enabled=progress) as advance:
        tensors = _merged(found) if _is_lora(config) else _stored(found, config.model, facts.task, files, advance)
        size = write(output, config.model, tokenizer, tensors, facts, dtype=DTYPES[dtype],
                     max_shard_bytes=max_shard_bytes, chat_template=template)  # fmt: skip
    return Exported(found.manifest.step, size)


def _is_lora(config: Config) -> bool:
    return isinstance(config, FinetuneConfig) and config.lora.rank > 0


def _stored(
    found: Found, config: ModelConfig, task: Task, files: Sequence[FileEntry], advance: Advance
) -> Iterator[tuple[str, Tensor]]:
    """The parameters in the model's order. Raises CheckpointError unless the checkpoint holds just these, undamaged."""
    wanted = shapes(config, task.kind, task.outputs)
    held = {tensor.name: tensor.shape for tensor in found.manifest.tensors if WEIGHT in tensor.states}
    if difference := sorted(wanted.items() ^ held.items()):
        name = difference[0][0]
        raise CheckpointError(found.folder, f"holds '{name}' as {held.get(name)}, its settings as {wanted.get(name)}",
                              fix="give another checkpoint")  # fmt: skip
    check_files(found, files, advance)
    for name in wanted:
        yield name, read_tensor(found, found.manifest.tensor_ids[name], WEIGHT, advance)


def _merged(found: Found) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a LoRA run's model, merged in memory."""
    from dgpt.finetuned import whole_model

    model = whole_model(found, tokenizer_of(found), torch.device("cpu"))
    yield from ((name, parameter.detach()) for name, parameter in model.named_parameters())


def _export_merged(found: Found, output: Place, dtype: torch.dtype) -> Manifest:
    """What is written is a fully fine-tuned model, which needs no base."""
    config = read_config(found).model_copy(update={"lora": LoraConfig()})
    meta = found.manifest.meta.model_copy(update={"config": config.model_dump(mode="json")})
    tensors = dict(_merged(found))
    entries = [whole_entry(name, tuple(tensor.shape), DTYPE_NAMES[dtype]) for name, tensor in tensors.items()]
    return new_checkpoint(output, found.manifest.step, meta, entries, lambda entry: tensors[entry.name].to(dtype),
                          _beside(found, config))  # fmt: skip


def average(sources: Sequence[str | Place], output: Place, *, progress: bool = False) -> Manifest:
    """Write the mean of the weights of several checkpoints, as `export` does, with the settings of the newest."""
    found = [choose(source) for source in sources]
    newest = rewrite.newest_of(found)
    return rewrite.average(found, output, _beside(newest, read_config(newest)), progress=progress)


def _beside(found: Found, config: Config) -> dict[str, bytes]:
    """Files that make a checkpoint's folder complete, by name."""
    tokenizer = {f"tokenizer/{name}": content for name, content in tokenizer_of(found).files().items()}
    return {"config.toml": to_toml(config).encode(), **tokenizer}
