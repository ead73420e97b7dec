"""Equal logits, in fp32 to 1e-5, with the models of `transformers` on the same random weights."""

import pytest
import torch
from torch import Tensor, nn

from dgpt.config import ModelConfig
from dgpt.model.gpt import GPT
from dgpt.model.init import build_model

transformers = pytest.importorskip("transformers")

TOKENS = torch.randint(90, (3, 17), generator=torch.Generator().manual_seed(0))


def random_model(config: ModelConfig) -> GPT:
    """Every parameter random, biases and norms too: an exchanged or forgotten one shows."""
    model = build_model(config, seed=0, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=float(parameter.dim() == 1), std=0.2, generator=generator)
    return model.eval()


def hugging_face_gpt2(model: GPT) -> nn.Module:
    c = model.config
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=c.padded_vocab_size, n_positions=c.seq_len, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
        n_inner=c.ff_width, tie_word_embeddings=c.tie_embeddings, bos_token_id=None, eos_token_id=None,
    ))  # fmt: skip
    ours = dict(model.named_parameters(remove_duplicate=False))
    state = {"transformer.wte.weight": ours["wte.weight"], "transformer.wpe.weight": ours["wpe.weight"],
             "transformer.ln_f.weight": ours["norm.weight"], "transformer.ln_f.bias": ours["norm.bias"],
             "lm_head.weight": ours["head.weight"]}  # fmt: skip
    for i in range(c.n_layer):
        us, them = f"blocks.{i}.", f"transformer.h.{i}."
        for part in ("weight", "bias"):  # their Conv1D holds transposed weights, and q, k, v side by side
            qkv = torch.cat([ours[f"{us}attn.{name}.{part}"] for name in "qkv"])
            state[f"{them}attn.c_attn.{part}"] = qkv.mT if part == "weight" else qkv
            for mine, name in (("attn.proj", "attn.c_proj"), ("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj")):
                tensor = ours[f"{us}{mine}.{part}"]
                state[f"{them}{name}.{part}"] = tensor.mT if part == "weight" else tensor
            for mine, name in (("norm1", "ln_1"), ("norm2", "ln_2")):
                state[f"{them}{name}.{part}"] = ours[f"{us}{mine}.{part}"]
    return load(theirs, state)


def hugging_face_llama(model: GPT) -> nn.Module:
    c = model.config
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=c.padded_vocab_size, hidden_size=c.n_embd, intermediate_size=c.ff_width, rms_norm_eps=c.norm_eps,
        num_hidden_layers=c.n_layer, num_attention_heads=c.n_head, num_key_value_heads=c.kv_heads,
        max_position_embeddings=c.seq_len, tie_word_embeddings=c.tie_embeddings, attention_bias=c.bias, mlp_bias=c.bias,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}, bos_token_id=None, eos_token_id=None,
    ))  # fmt: skip
    renamed = (("blocks.", "model.layers."), ("norm1.", "input_layernorm."), ("norm2.", "post_attention_layernorm."),
               ("attn.proj", "self_attn.o_proj"), ("attn.", "self_attn."), ("self_self_", "self_"),
               *((f"{name}.", f"{name}_proj.") for name in ("up", "gate", "down")),
               *((f"attn.{name}.", f"attn.{name}_proj.") for name in "qkv"))  # fmt: skip
    state = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for mine, their_name in renamed:
            name = name.replace(mine, their_name)
        outer = {"wte.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight",
                 "head.weight": "lm_head.weight"}  # fmt: skip
        state[outer.get(name, name)] = parameter
    return load(theirs, state)


def load(theirs: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert not missing
    return theirs.eval()


def assert_equal_logits(model: GPT, theirs: nn.Module) -> None:
    with torch.no_grad():
        ours, reference = model(TOKENS), theirs(TOKENS).logits
    assert reference.std() > 0.5  # a comparison of something
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_gpt2(tied: bool) -> None:
    model = random_model(ModelConfig(n_layer=2, n_head=4, n_embd=32, seq_len=20, vocab_size=90, tie_embeddings=tied))
    assert_equal_logits(model, hugging_face_gpt2(model))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
@pytest.mark.parametrize("rope_theta", [10000.0, 500000.0])
def test_llama(tied: bool, n_kv_head: int, rope_theta: float) -> None:
    model = random_model(ModelConfig(shape="llama", n_layer=2, n_head=4, n_kv_head=n_kv_head, n_embd=32, seq_len=20,
                                     vocab_size=90, tie_embeddings=tied, rope_theta=rope_theta))  # fmt: skip
    assert_equal_logits(model, hugging_face_llama(model))
