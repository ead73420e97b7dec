"""What dgpt and `transformers` call the same thing: the tables that export and import both read.

GPT-2: https://github.com/huggingface/transformers/blob/main/src/transformers/models/gpt2/modeling_gpt2.py
Llama: https://github.com/huggingface/transformers/blob/main/src/transformers/models/llama/modeling_llama.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

HeadKind = Literal["language_model", "classification", "extractive_qa"]


@dataclass(frozen=True)
class Layer:
    """A layer of theirs, and those of ours that it holds, one below the other."""

    theirs: str
    ours: tuple[str, ...]
    conv1d: bool = False  # GPT-2's Conv1D holds its weight as (in, out), all others as (out, in)


@dataclass(frozen=True)
class Head:
    """The class of a model, by what follows the final norm."""

    suffix: str  # of the class, after the family's name
    layer: Layer
    bias: bool = False
    base: str | None = None  # name of the model below the head, where it is not the family's


@dataclass(frozen=True)
class Setting:
    """A key of config.json that holds a setting of ours."""

    theirs: str
    ours: str  # of ModelConfig
    default: Any = None  # if the key is missing; None: it must be there


@dataclass(frozen=True)
class Fixed:
    """A key of config.json for which dgpt has no setting: only these values compute the same."""

    theirs: str
    values: tuple[Any, ...]  # the first is written


@dataclass(frozen=True, eq=False)
class Family:
    """A family of models of `transformers`."""

    model_type: str
    shape: str  # of dgpt
    title: str
    base: str  # name of the model below the head
    block: str  # name of a block in it
    requires: Mapping[str, Any]  # settings of ours that every model of the family has
    outer: tuple[Layer, ...]  # in the order of dgpt's parameters
    inner: tuple[Layer, ...]  # of a block
    heads: Mapping[HeadKind, Head]
    settings: tuple[Setting, ...]
    fixed: tuple[Fixed, ...]
    always_biased: bool  # a model without biases has them as zeros
    buffers: tuple[str, ...]  # ends of names in older files that are no parameters

    def class_of(self, kind: HeadKind) -> str:
        return self.title + self.heads[kind].suffix

    @property
    def classes(self) -> dict[str, HeadKind]:
        return {self.class_of(kind): kind for kind in self.heads}


LANGUAGE_MODEL = Layer("lm_head", ("head",))
CLASSIFICATION = Head("ForSequenceClassification", Layer("score", ("task_head",)))

GPT2 = Family(
    model_type="gpt2",
    shape="gpt2",
    title="GPT2",
    base="transformer",
    block="h",
    requires={"position": "learned", "norm": "layernorm", "mlp": "gelu"},
    outer=(Layer("wte", ("wte",)), Layer("wpe", ("wpe",)), Layer("ln_f", ("norm",))),
    inner=(
        Layer("ln_1", ("norm1",)),
        Layer("attn.c_attn", ("attn.q", "attn.k", "attn.v"), conv1d=True),
        Layer("attn.c_proj", ("attn.proj",), conv1d=True),
        Layer("ln_2", ("norm2",)),
        Layer("mlp.c_fc", ("mlp.up",), conv1d=True),
        Layer("mlp.c_proj", ("mlp.down",), conv1d=True),
    ),
    heads={
        "language_model": Head("LMHeadModel", LANGUAGE_MODEL),
        "classification": CLASSIFICATION,
        "extractive_qa": Head("ForQuestionAnswering", Layer("qa_outputs", ("task_head",)), bias=True),
    },
    settings=(
        Setting("n_layer", "n_layer"),
        Setting("n_head", "n_head"),
        Setting("n_embd", "n_embd"),
        Setting("n_inner", "n_ff", 0),  # null: 4 n_embd, as 0 for us
        Setting("n_positions", "seq_len"),
        Setting("vocab_size", "vocab_size"),
        Setting("layer_norm_epsilon", "norm_eps", 1e-5),
        Setting("initializer_range", "init_std", 0.02),
        Setting("tie_word_embeddings", "tie_embeddings", True),
        Setting("resid_pdrop", "dropout", 0.1),
        Setting("embd_pdrop", "dropout", 0.1),
        Setting("attn_pdrop", "dropout", 0.1),
    ),
    fixed=(
        Fixed("activation_function", ("gelu_new", "gelu_pytorch_tanh")),  # two names for the tanh form
        Fixed("scale_attn_weights", (True,)),
        Fixed("scale_attn_by_inverse_layer_idx", (False,)),
        Fixed("add_cross_attention", (False,)),
    ),
    always_biased=True,
    buffers=(".attn.bias", ".attn.masked_bias"),
)

LLAMA = Family(
    model_type="llama",
    shape="llama",
    title="Llama",
    base="model",
    block="layers",
    requires={"position": "rope", "norm": "rmsnorm", "mlp": "swiglu"},
    outer=(Layer("embed_tokens", ("wte",)), Layer("norm", ("norm",))),
    inner=(
        Layer("input_layernorm", ("norm1",)),
        *(Layer(f"self_attn.{name}_proj", (f"attn.{name}",)) for name in "qkv"),
        Layer("self_attn.o_proj", ("attn.proj",)),
        Layer("post_attention_layernorm", ("norm2",)),
        *(Layer(f"mlp.{name}_proj", (f"mlp.{name}",)) for name in ("up", "gate", "down")),
    ),
    heads={
        "language_model": Head("ForCausalLM", LANGUAGE_MODEL),
        "classification": CLASSIFICATION,
        "extractive_qa": Head("ForQuestionAnswering", Layer("qa_outputs", ("task_head",)), bias=True,
                              base="transformer"),
    },
    settings=(
        Setting("num_hidden_layers", "n_layer"),
        Setting("num_attention_heads", "n_head"),
        Setting("num_key_value_heads", "n_kv_head", 0),
        Setting("hidden_size", "n_embd"),
        Setting("intermediate_size", "n_ff"),
        Setting("max_position_embeddings", "seq_len", 2048),
        Setting("vocab_size", "vocab_size"),
        Setting("rms_norm_eps", "norm_eps", 1e-6),
        Setting("rope_theta", "rope_theta", 10000.0),
        Setting("initializer_range", "init_std", 0.02),
        Setting("tie_word_embeddings", "tie_embeddings", False),
        Setting("attention_bias", "bias", False),
        Setting("mlp_bias", "bias", False),
    ),
    fixed=(Fixed("hidden_act", ("silu", "swish")), Fixed("pretraining_tp", (1,))),
    always_biased=False,
    buffers=(".rotary_emb.inv_freq",),
)  # fmt: skip

FAMILIES: dict[str, Family] = {family.model_type: family for family in (GPT2, LLAMA)}
