"""Run folders of random models at any TP degree, and the folders of transformers made of them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpt.checkpoint import Checkpointer, MeshEntry, Meta
from dgpt.config import FinetuneConfig, ModelConfig, RunConfig, TaskConfig
from dgpt.data.tokenizer import Tokenizer, load_tokenizer, save_tokenizer
from dgpt.fragments import Fragment
from dgpt.model.gpt import GPT
from dgpt.model.heads import Classifier, SpanFinder
from dgpt.parallel.tensor import tp_axis

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 32, "seq_len": 48}
MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer(tiny_data: Path) -> Tokenizer:
    """SentencePiece BPE of 300 ids."""
    return load_tokenizer(tiny_data)


def random_weights(config: RunConfig | FinetuneConfig) -> dict[str, Tensor]:
    """Every parameter random, biases and norms too: an exchanged or forgotten one shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        model = GPT(config.model)
        if isinstance(config, FinetuneConfig) and config.task.kind == "classification":
            model = Classifier(model, len(config.task.labels))
        elif isinstance(config, FinetuneConfig) and config.task.kind == "extractive_qa":
            model = SpanFinder(model)
    return {name: torch.randn(p.shape, generator=generator) * 0.2 + (p.dim() == 1)
            for name, p in model.named_parameters()}  # fmt: skip


@pytest.fixture(scope="session")
def make_run(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """make_run(tp=1, task=None, **model settings): a run folder with a checkpoint that `tp` ranks wrote.

    task: of a fine-tuned model. weights: function from settings to what is stored, by name; random ones by default.
    """

    def make(tp: int = 1, task: TaskConfig | None = None, weights: Any = random_weights, **settings: Any) -> Path:
        lora = settings.pop("finetune", {})
        model = ModelConfig.model_validate({**SMALL, "vocab_size": tokenizer.vocab_size, **settings})
        config = FinetuneConfig(model=model, task=task, **lora) if task else RunConfig(model=model)
        return save_run(tmp_path_factory.mktemp("run"), config, tokenizer, tp, weights(config))

    return make


def save_run(
    run: Path, config: RunConfig | FinetuneConfig, tokenizer: Tokenizer, tp: int, weights: dict[str, Tensor]
) -> Path:
    (run / "tokenizer").mkdir()
    save_tokenizer(tokenizer, run / "tokenizer")
    mesh = MeshEntry(world_size=tp, dp_size=1, tp=tp, zero_stage=0)
    meta = Meta(tokens=1000, samples=10, loss=2.5, data_hash="d" * 64, tokenizer_hash=tokenizer.hash,
                config=config.model_dump(mode="json"))  # fmt: skip
    writers = [Checkpointer(run, rank, mesh, "a1") for rank in range(tp)]
    with ThreadPoolExecutor(tp) as threads:
        list(threads.map(lambda rank: writers[rank].save(3, fragments(weights, rank, tp), meta), range(tp)))
    for writer in writers:
        writer.wait()
    return run


def fragments(weights: dict[str, Tensor], rank: int, tp: int) -> list[Fragment]:
    found = []
    for name, whole in weights.items():
        axis = tp_axis(name) if tp > 1 else None
        part = whole if axis is None else whole.chunk(tp, axis)[rank]
        replica = (rank, tp) if axis is None else (0, 1)
        found.append(Fragment(name, "weight", tuple(whole.shape), axis, rank, tp, 0, part.flatten(), *replica))
    return found
