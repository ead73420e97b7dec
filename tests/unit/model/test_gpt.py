"""Facts about the model: causality, documents, dropout, tied weights, positions."""

import math

import pytest
import torch

from dgpt.config import ModelConfig
from dgpt.model.gpt import GPT, document_positions, rotary, rotate
from dgpt.model.init import build_model

CPU = torch.device("cpu")
GPT2 = ModelConfig(n_layer=2, n_head=4, n_embd=32, seq_len=16, vocab_size=50, init_std=0.3)
LLAMA = ModelConfig(shape="llama", n_layer=2, n_head=4, n_kv_head=2, n_embd=32, seq_len=16, vocab_size=50, init_std=0.3)


@pytest.fixture(params=[GPT2, LLAMA], ids=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> GPT:
    return build_model(request.param, seed=0, device=CPU)


def some_tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(0))


def test_a_token_sees_itself_and_the_past_alone(model: GPT) -> None:
    tokens = some_tokens(2, 16)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert ((before[:, 9:] - after[:, 9:]).abs().amax(dim=-1) > 1e-4).all()


def test_packed_documents_have_the_logits_of_each_alone(model: GPT) -> None:
    tokens = some_tokens(2, 16)
    lengths = [[5, 1, 10], [16]]
    documents = torch.stack([torch.repeat_interleave(torch.tensor([7, 3, 9])[: len(row)], torch.tensor(row))
                             for row in lengths])  # fmt: skip
    packed = model(tokens, documents=documents)
    for row, row_lengths in enumerate(lengths):
        start = 0
        for length in row_lengths:
            alone = model(tokens[row : row + 1, start : start + length])
            torch.testing.assert_close(packed[row : row + 1, start : start + length], alone, atol=1e-5, rtol=1e-5)
            start += length
    assert (packed[0, 5:] - model(tokens)[0, 5:]).abs().max() > 0.1  # it is the documents that did it


def test_positions_start_anew_at_each_document_number() -> None:
    documents = torch.tensor([[0, 0, 0, 1, 2, 2], [5, 5, 4, 4, 5, 5]])
    assert document_positions(documents).tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 0, 1, 0, 1]]


def test_rope_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    scores = []
    for start in (0, 3, 700):
        turned = [rotate(x, *rotary(torch.tensor([[at]]), 8, 10000.0)) for x, at in ((q, start + 5), (k, start))]
        scores.append((turned[0] * turned[1]).sum())
    torch.testing.assert_close(scores[1], scores[0])
    torch.testing.assert_close(scores[2], scores[0], atol=1e-4, rtol=1e-4)


def test_rope_turns_the_first_pair_by_one_radian_a_position() -> None:
    cos, sin = rotary(torch.tensor([[3]]), 4, 10000.0)
    assert cos[0, 0, 0].tolist() == pytest.approx([math.cos(3), math.cos(0.03)] * 2)
    assert sin[0, 0, 0].tolist() == pytest.approx([math.sin(3), math.sin(0.03)] * 2)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_dropout_is_active_in_training_alone(config: ModelConfig) -> None:
    tokens = some_tokens(2, 16)
    without = build_model(config, seed=0, device=CPU).train()
    model = build_model(config.model_copy(update={"dropout": 0.2}), seed=0, device=CPU)
    assert torch.equal(model.eval()(tokens), without(tokens))
    first, second = model.train()(tokens), model(tokens)
    assert not torch.equal(first, second)
    assert not torch.equal(first, without(tokens))


def test_attention_weights_are_dropped_too() -> None:
    model = build_model(GPT2.model_copy(update={"dropout": 0.5}), seed=0, device=CPU).train()
    attend = model.blocks[0].attn.attend
    q = torch.randn(1, 4, 16, 8)
    context = model.context(torch.arange(16)[None], None, None)
    assert not torch.equal(attend(q, q, q, context), attend(q, q, q, context))


def test_tied_embeddings_are_one_parameter_with_the_gradient_of_both_uses() -> None:
    tied = build_model(GPT2, seed=0, device=CPU)
    assert tied.head.weight is tied.wte.weight
    untied = build_model(GPT2.model_copy(update={"tie_embeddings": False}), seed=0, device=CPU)
    with torch.no_grad():
        untied.head.weight.copy_(untied.wte.weight)
    tokens = some_tokens(2, 9)
    for model in (tied, untied):
        model(tokens[:, :-1], tokens[:, 1:]).backward()
    torch.testing.assert_close(tied.wte.weight.grad, untied.wte.weight.grad + untied.head.weight.grad)


def test_bias_and_ties_follow_the_settings() -> None:
    names = {name for name, _ in build_model(LLAMA, seed=0, device=CPU).named_parameters()}
    assert not [name for name in names if name.endswith("bias") or name.startswith("wpe")]
    assert {"head.weight", "wte.weight", "blocks.0.mlp.gate.weight"} <= names
    names = {name for name, _ in build_model(GPT2, seed=0, device=CPU).named_parameters()}
    assert "head.weight" not in names
    assert {"wpe.weight", "blocks.1.norm2.bias", "blocks.1.attn.q.bias", "norm.bias"} <= names
