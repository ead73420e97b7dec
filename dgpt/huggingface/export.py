"""A folder that `transformers` loads without dgpt: config.json, safetensors, tokenizer, model card."""

from collections.abc import Callable, Iterable, Iterator
from uuid import uuid4

import torch
from torch import Tensor

from dgpt.checkpoint.output import check_free, new_folder
from dgpt.config import ModelConfig
from dgpt.data.tokenizer import Tokenizer
from dgpt.errors import UserError
from dgpt.huggingface.card import Facts, model_card
from dgpt.huggingface.folder import plan_shards, write_shards
from dgpt.huggingface.settings import family_of, to_json
from dgpt.huggingface.tensors import Pair, pairs
from dgpt.huggingface.tokenizer import json_bytes, tokenizer_files
from dgpt.storage import Place

MAX_SHARD_BYTES = 5 * 10**9  # as transformers
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def write(
    folder: Place,
    config: ModelConfig,
    tokenizer: Tokenizer,
    tensors: Iterable[tuple[str, Tensor]],
    facts: Facts,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    chat_template: str = "",
) -> int:
    """Write a model to the new folder or URL `folder`; gives the bytes of its tensors.

    tensors: under dgpt's names, best in the order of GPT's parameters: one that comes before others of the same fused
    tensor (q, k, v of GPT-2) waits in memory for them. They are taken once everything else has been checked.
    Raises UserError if no class of `transformers` computes what the model does, or `folder` cannot be made.
    """
    family, task = family_of(config), facts.task
    check_free(folder, facts.step)
    files, pad_id = tokenizer_files(tokenizer, config.seq_len, task.kind, chat_template)
    if task.kind == "classification" and not task.labels:
        raise UserError("the classifier names no labels", rule="its settings hold the label of each output",
                        fix="export a checkpoint that `dgpt finetune` wrote")  # fmt: skip
    plan = pairs(config, family, task.kind, task.outputs)
    parameters = sum(pair.numel for pair in plan)
    special = {"bos_token_id": tokenizer.eod_id, "eos_token_id": tokenizer.eod_id, "pad_token_id": pad_id}
    settings = to_json(config, family, task, special, DTYPE_NAMES[dtype])
    if task.kind == "language_model":
        files["generation_config.json"] = json_bytes(special)
    files["README.md"] = model_card(folder.name, family.class_of(task.kind), parameters, task, facts).encode()
    with new_folder(folder, f"export-{uuid4().hex}", parameters * dtype.itemsize) as write:
        for name, content in files.items():
            write(name, iter([content]))
        shards = plan_shards(plan, dtype.itemsize, max_shard_bytes)
        size = write_shards(write, shards, dtype, _collect(iter(tensors), dtype))
        write("config.json", iter([json_bytes(settings)]))  # last: without it no reader takes the folder for a model
    return size


def _collect(tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> Callable[[Pair], Tensor]:
    """A function that gives a tensor of theirs once those that it is made of have come."""
    waiting: dict[str, Tensor] = {}

    def read(pair: Pair) -> Tensor:
        while not waiting.keys() >= set(pair.ours):
            given = next(tensors, None)
            assert given is not None, f"{pair.theirs} is made of {pair.ours}, and not all of these came"
            waiting[given[0]] = given[1]
        return pair.to_theirs([waiting.pop(name) for name in pair.ours]).to(dtype)

    return read
