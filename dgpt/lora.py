"""LoRA through the `peft` library: low-rank updates of the linear layers, saved alone, merged for use (2106.09685)."""

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgpt.checkpoint.find import Found
from dgpt.checkpoint.whole import read_tensor
from dgpt.config import FinetuneConfig
from dgpt.fragments import Fragment
from dgpt.model.gpt import GPT
from dgpt.model.heads import HeadedGPT

FOLDER = "adapter"
PREFIX = "base_model.model."  # of peft's names


def apply(model: GPT, config: FinetuneConfig) -> Any:
    """Put updates into `model`, in place; the PeftModel around it. All but the updates and a task's head is frozen.

    New weights are a function of (seed, name): A uniform as in nn.Linear, B zero, so that nothing changes at first.
    """
    from peft import get_peft_model

    adapted = get_peft_model(model, peft_config(model, config))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                digest = hashlib.sha256(f"{config.seed}/{name}".encode()).digest()
                generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
                parameter.uniform_(-(parameter.size(1) ** -0.5), parameter.size(1) ** -0.5, generator=generator)
    model.wte.register_forward_hook(_ask_for_gradients)
    return adapted


def _ask_for_gradients(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Of the frozen embedding: a block that is recomputed in backward gives none unless its input wants them."""
    return output.requires_grad_() if torch.is_grad_enabled() else output


def peft_config(model: GPT, config: FinetuneConfig) -> Any:
    from peft import LoraConfig

    layers = "|".join(map(re.escape, config.lora.targets))
    return LoraConfig(
        r=config.lora.rank, lora_alpha=config.lora.alpha, lora_dropout=config.lora.dropout,
        target_modules=rf"blocks\.\d+\.({layers})",
        modules_to_save=["task_head"] if isinstance(model, HeadedGPT) else None,
    )  # fmt: skip


def trainable(adapted: Any) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}


def fragments(adapted: Any) -> list[Fragment]:
    """The whole weights of the updates."""
    return [Fragment(name, "weight", tuple(p.shape), None, 0, 1, 0, p.detach().view(-1))
            for name, p in trainable(adapted).items()]  # fmt: skip


def merge(adapted: Any) -> GPT:
    """The model with the updates added to its weights, and no other trace of them."""
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    model: GPT = adapted.base_model.model
    for name, module in list(model.named_modules()):
        owner, _, leaf = name.rpartition(".")
        if isinstance(module, LoraLayer):
            module.merge()
            setattr(model.get_submodule(owner), leaf, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            setattr(model.get_submodule(owner), leaf, module.modules_to_save["default"])
    del model.peft_config  # peft's mark, by which it would take the model for an adapted one
    return model.requires_grad_(True)


def write_adapter(found: Found, model: GPT, config: FinetuneConfig, folder: Path) -> None:
    """The updates of a checkpoint as peft's own folder: adapter_model.safetensors and adapter_config.json."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    tensors = {_short(entry.name): read_tensor(found, number, "weight", lambda _: None)
               for number, entry in enumerate(found.manifest.tensors)}  # fmt: skip
    settings = peft_config(model, config)
    settings.base_model_name_or_path, settings.inference_mode = config.base, True
    settings.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _short(name: str) -> str:
    """A parameter's name as peft writes it into a file: without the name of the adapter."""
    return name.replace("modules_to_save.default.", "").replace(".default.", ".")
