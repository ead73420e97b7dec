"""Run folders of random models at any TP degree, and the folders of transformers made of them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpt.checkpoint import Checkpointer, MeshEntry, Meta
from dgpt.config import ModelConfig, RunConfig
from dgpt.data.tokenizer import Tokenizer, load_tokenizer, save_tokenizer
from dgpt.fragments import Fragment
from dgpt.model.gpt import GPT
from dgpt.parallel.tensor import tp_axis

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 32, "seq_len": 48}
MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer(tiny_data: Path) -> Tokenizer:
    """SentencePiece BPE of 300 ids."""
    return load_tokenizer(tiny_data)


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Every parameter random, biases and norms too: an exchanged or forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in GPT(config).named_parameters()}
    return {name: torch.randn(shape, generator=generator) * 0.2 + (len(shape) == 1) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def make_run(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """make_run(tp=1, tokenizer=None, **model settings): a run folder with a checkpoint that `tp` ranks wrote."""

    def make(tp: int = 1, tokenizer: Tokenizer = tokenizer, **settings: Any) -> Path:
        model = ModelConfig.model_validate({**SMALL, "vocab_size": tokenizer.vocab_size, **settings})
        return save_run(tmp_path_factory.mktemp("run"), RunConfig(model=model), tokenizer, tp, random_weights(model))

    return make


def save_run(run: Path, config: RunConfig, tokenizer: Tokenizer, tp: int, weights: dict[str, Tensor]) -> Path:
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
