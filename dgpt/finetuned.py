"""A model that was trained here, whole and in one process: pretrained or fine-tuned, LoRA merged into its base."""

from hashlib import sha256

import torch
from torch import nn

from dgpt import lora
from dgpt.checkpoint.compatible import read_config
from dgpt.checkpoint.find import Found, open_checkpoint
from dgpt.checkpoint.format import MANIFEST
from dgpt.checkpoint.load import load, load_weights
from dgpt.config import FinetuneConfig, ModelConfig
from dgpt.data.tokenizer import Tokenizer
from dgpt.errors import UserError
from dgpt.generate import tokenizer_of, use_whole
from dgpt.model.gpt import GPT, Attend, Head
from dgpt.model.heads import HeadedGPT
from dgpt.model.init import initial_weight
from dgpt.storage import Place, place
from dgpt.tasks.base import Task
from dgpt.tasks.evaluate import Finetuned
from dgpt.tasks.registry import task_of


def load_finetuned(path: str | Place) -> Finetuned:
    """A fine-tuned model in fp32, on the GPU if there is one. Raises UserError if `path` holds none."""
    return use_whole(path, _load_finetuned)


def _load_finetuned(found: Found) -> Finetuned:
    config = read_config(found)
    if not isinstance(config, FinetuneConfig):
        raise UserError(f"{found.folder} is a pretrained model", rule="a fine-tuned model answers for its task",
                        fix="fine-tune it with `dgpt finetune`, or write with `dgpt generate`")  # fmt: skip
    tokenizer = tokenizer_of(found)
    model = whole_model(found, tokenizer, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return Finetuned(model.eval(), tokenizer, config)


def whole_model(found: Found, tokenizer: Tokenizer, device: torch.device) -> GPT:
    """The model of a checkpoint in fp32 on `device`. Raises CheckpointError if it, or its base, cannot be read."""
    config = read_config(found)
    if not isinstance(config, FinetuneConfig):
        return _filled(found, _empty(config.model, device))
    task = task_of(config, tokenizer)
    if not config.lora.rank:
        return _filled(found, task.model(_empty(config.model, device)))
    base = open_base(config)
    model = task.model(whole_model(base, tokenizer, device))
    adapted = lora.apply(model, config)
    load(found, lora.fragments(adapted), config)
    return lora.merge(adapted)


def new_model(base: Found, task: Task, config: FinetuneConfig, device: torch.device) -> GPT:
    """The base, with a fresh head where the task has one. Raises UserError if the base cannot write and must."""
    body = whole_model(base, task.tokenizer, device)
    if config.task.is_language_model and isinstance(body, HeadedGPT):
        raise UserError(f"base = '{config.base}' was fine-tuned for another task, and writes no text any more",
                        rule=f"task.kind = '{config.task.kind}' needs a language model",
                        fix="give the model that it was fine-tuned from")  # fmt: skip
    model = task.model(_with_settings(body, config))
    if isinstance(model, HeadedGPT):
        with torch.no_grad():
            for name, parameter in model.task_head.named_parameters(prefix="task_head"):
                parameter.copy_(initial_weight(name, parameter.shape, config.model, config.seed, device))
    return model


def _with_settings(model: GPT, config: FinetuneConfig) -> GPT:
    """What a run may choose for itself: dropout, and how the loss is computed."""
    model.config = config.model
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = config.model.dropout
        elif isinstance(module, Attend):
            module.dropout = config.model.dropout
        elif isinstance(module, Head):
            module.chunk_tokens, module.z_loss = config.training.loss_chunk_tokens, config.training.z_loss
    return model


def open_base(config: FinetuneConfig) -> Found:
    """The checkpoint that `config.base` names. Raises UserError if it is not the one that the run started from."""
    if not config.base:
        raise UserError("base = '' names no model", rule="a fine-tuning starts from a trained model",
                        fix="set base to a run folder, a checkpoint or an export; `dgpt import` makes one from a "
                        "Hugging Face folder")  # fmt: skip
    found = open_checkpoint(place(config.base))
    if config.base_hash and config.base_hash != hash_of(found):
        raise UserError(f"base = '{config.base}' has changed since this run started from it",
                        rule="LoRA is a change to the very weights that it was trained on",
                        fix="restore that checkpoint, or set base to a copy of it")  # fmt: skip
    return found


def hash_of(found: Found) -> str:
    """Identity of a checkpoint: of its manifest, which has the hashes of all its files."""
    return sha256((found.folder / MANIFEST).read_bytes()).hexdigest()


def _empty(config: ModelConfig, device: torch.device) -> GPT:
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device=device)
    model.tie_weights()
    return model


def _filled(found: Found, model: GPT) -> GPT:
    load_weights(found.folder, model)
    return model
