"""Initial weights: a function of (seed, name), with the standard deviations that they should have."""

import math

import pytest
import torch

from dgpt.config import ModelConfig
from dgpt.model.init import build_model, initial_weight

CPU = torch.device("cpu")
CONFIG = ModelConfig(n_layer=8, n_head=4, n_embd=128, seq_len=64, vocab_size=500)


def test_a_weight_depends_on_seed_and_name_alone() -> None:
    shape = torch.Size((128, 128))
    weight = initial_weight("blocks.3.attn.q.weight", shape, CONFIG, 1, CPU)
    torch.manual_seed(99)
    torch.rand(7)
    assert torch.equal(weight, initial_weight("blocks.3.attn.q.weight", shape, CONFIG, 1, CPU))
    assert torch.equal(weight, dict(build_model(CONFIG, 1, CPU).named_parameters())["blocks.3.attn.q.weight"])
    deeper = CONFIG.model_copy(update={"n_layer": 24, "vocab_size": 9000, "tie_embeddings": False})
    assert torch.equal(weight, initial_weight("blocks.3.attn.q.weight", shape, deeper, 1, CPU))
    assert not torch.equal(weight, initial_weight("blocks.3.attn.q.weight", shape, CONFIG, 2, CPU))
    assert not torch.equal(weight, initial_weight("blocks.3.attn.k.weight", shape, CONFIG, 1, CPU))


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    build_model(CONFIG, 1, CPU)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_standard_deviations(shape: str) -> None:
    config = ModelConfig(shape=shape, n_layer=8, n_head=4, n_embd=128, seq_len=64, vocab_size=500, init_std=0.05)
    for name, parameter in build_model(config, 1, CPU).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert (parameter == 1).all()
        else:
            residual = name.endswith(("attn.proj.weight", "mlp.down.weight"))
            expected = 0.05 / math.sqrt(16) if residual else 0.05
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < 4 * expected / math.sqrt(parameter.numel()), name


def test_the_residual_stream_does_not_grow_with_depth() -> None:
    """The blocks add about the same variance in total at 2 and at 32 layers; unscaled they would add 16 times more."""
    added = []
    for n_layer in (2, 32):
        model = build_model(CONFIG.model_copy(update={"n_layer": n_layer, "init_std": 0.1}), 1, CPU)
        streams: list[torch.Tensor] = []
        model.blocks[0].register_forward_pre_hook(lambda _, args, s=streams: s.append(args[0]))
        model.norm.register_forward_pre_hook(lambda _, args, s=streams: s.append(args[0]))
        model(torch.randint(500, (4, 64), generator=torch.Generator().manual_seed(0)))
        added.append((streams[1] - streams[0]).var().item())
    assert 1 / 3 < added[1] / added[0] < 3


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    model = build_model(CONFIG, 1, CPU)
    tokens = torch.randint(500, (8, 65), generator=torch.Generator().manual_seed(0))
    loss = model(tokens[:, :-1], tokens[:, 1:])
    assert loss.item() == pytest.approx(math.log(CONFIG.padded_vocab_size), abs=0.1)
