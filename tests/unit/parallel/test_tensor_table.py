"""The TP table covers every parameter of every model, exactly once."""

import pytest
import torch

from dgpt.config import ModelConfig
from dgpt.model.gpt import GPT
from dgpt.parallel.tensor import TP_TABLE, tp_axis


@pytest.mark.parametrize("config", [
    ModelConfig(vocab_size=64), ModelConfig(shape="llama", vocab_size=64), ModelConfig(shape="llama", bias=True),
    ModelConfig(tie_embeddings=False), ModelConfig(position="rope", bias=False), ModelConfig(mlp="swiglu"),
], ids=str)  # fmt: skip
def test_every_parameter_matches_one_row(config: ModelConfig) -> None:
    with torch.device("meta"):
        for name, parameter in GPT(config).named_parameters():
            axis = tp_axis(name)
            assert axis is None or axis < parameter.dim()


def test_every_row_matches_a_parameter() -> None:
    import re

    with torch.device("meta"):
        names = [name for name, _ in GPT(ModelConfig(mlp="swiglu", tie_embeddings=False)).named_parameters()]
    assert all(any(re.fullmatch(pattern, name) for name in names) for pattern, _ in TP_TABLE)


def test_unknown_parameter_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"blocks\.0\.attn\.rotary matches 0 rows"):
        tp_axis("blocks.0.attn.rotary")
