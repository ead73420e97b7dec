"""What cannot be expressed on the other side, and what is damaged: refused with value and fix, nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from dgpt.cli import main
from dgpt.outcome import DONE

Mistake = Callable[..., str]


@pytest.fixture(scope="module")
def exported(make_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in several files, and a GPT-2."""
    folder = tmp_path_factory.mktemp("exported")
    assert main(["export", str(make_run(shape="llama")), str(folder / "llama"), "--max-shard-size", "60KB"]) == DONE
    assert main(["export", str(make_run()), str(folder / "gpt2")]) == DONE
    return folder


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


SUPPORTED = "supported are GPT2LMHeadModel, GPT2ForSequenceClassification, GPT2ForQuestionAnswering, LlamaForCausalLM"


@pytest.mark.parametrize(
    ("family", "values", "parts"),
    [
        ("llama", {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
         ("architectures = ['MistralForCausalLM'] of model_type = 'mistral' is not known here", SUPPORTED)),
        ("llama", {"architectures": ["GPT2LMHeadModel"]},
         ("architectures = ['GPT2LMHeadModel'] of model_type = 'llama'",)),
        ("llama", {"architectures": None}, ("architectures = None", SUPPORTED)),
        ("llama", {"auto_map": {"AutoModel": "code.Model"}}, ("auto_map", "dgpt runs no code of a model")),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
         ("rope_parameters = {'rope_type': 'llama3'", "positions are not scaled")),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
         ("rope_scaling = {'type': 'linear'",)),
        ("llama", {"hidden_act": "gelu"}, ("hidden_act = 'gelu'", "dgpt computes 'silu' or 'swish' alone")),
        ("llama", {"attention_bias": True}, ("mlp_bias = False cannot be expressed", "'bias': True")),
        ("llama", {"head_dim": 16}, ("head_dim = 16", "hidden_size / num_attention_heads")),
        ("llama", {"num_key_value_heads": 3}, ("n_head = 4 must be a multiple of n_kv_head = 3",)),
        ("llama", {"hidden_size": None}, ("hidden_size = None", "this size must be given")),
        ("llama", {"hidden_size": "32"}, ("n_embd",)),
        ("llama", {"vocab_size": 299}, ("of shape [300, 32], and config.json asks for [299, 32]",)),
        ("llama", {"num_hidden_layers": 1}, ("holds 'model.layers.1.", "which is no part of the model")),
        ("llama", {"num_hidden_layers": 3}, ("has no tensor 'model.layers.2.input_layernorm.weight'",)),
        ("gpt2", {"activation_function": "relu"}, ("activation_function = 'relu'", "'gelu_new' or")),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ("scale_attn_by_inverse_layer_idx = True",)),
        ("gpt2", {"tie_word_embeddings": False}, ("has no tensor 'lm_head.weight'",)),
        ("gpt2", {"architectures": ["GPT2ForSequenceClassification"], "problem_type": "regression"},
         ("problem_type = 'regression'",)),
        ("gpt2", {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"1": "a"}},
         ("id2label = {'1': 'a'}",)),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_settings_that_have_no_equal(
    family: str, values: dict[str, Any], parts: tuple[str, ...], copied: Path, tmp_path: Path, mistake: Mistake
) -> None:
    change(copied / family / "config.json", **values)
    message = mistake("import", copied / family, tmp_path / "ours")
    assert str(copied / family) in message
    for part in parts:
        assert part in message
    assert not (tmp_path / "ours").exists()


def test_files_that_are_damaged_or_do_not_fit(copied: Path, tmp_path: Path, mistake: Mistake) -> None:
    folder, original = copied / "llama", copied / "original"
    shutil.copytree(folder, original)
    index, (first, second, *_) = folder / "model.safetensors.index.json", sorted(folder.glob("model-*"))

    def refused(*parts: object) -> None:
        message = mistake("import", folder, tmp_path / "ours")
        assert all(str(part) in message for part in parts), message
        assert not list(tmp_path.glob("ours*"))
        shutil.rmtree(folder)
        shutil.copytree(original, folder)

    first.write_bytes(first.read_bytes()[:-1])
    refused(first, "is damaged or no safetensors file")
    first.write_bytes(b"no safetensors")
    refused(first, "is damaged or no safetensors file")
    first.unlink()
    refused(first, "is missing, and model.safetensors.index.json names it")
    first.write_bytes(second.read_bytes())
    refused(first, "does not hold", "which model.safetensors.index.json places there")
    places = json.loads(index.read_text())["weight_map"]
    change(index, weight_map=dict.fromkeys(places, "../original/model-00001-of-00002.safetensors"))
    refused(index, "names '../original/model-00001-of-00002.safetensors', which is no safetensors file of this folder")
    change(index, weight_map=None)
    refused(index, "has no weight_map")
    index.write_text("[]")
    refused(index, "cannot be read: it is no JSON object")
    index.unlink()
    refused(folder, "has neither model.safetensors nor model.safetensors.index.json")
    tensors = load_file(first)
    save_file({name: tensor.int() for name, tensor in tensors.items()}, first)
    refused(first, "as I32; weights are F64, F32, BF16, F16")
    save_file({name: tensor[:1].clone() for name, tensor in tensors.items()}, first)
    refused(first, "of shape [1", "and config.json asks for [300, 32]")
    save_file({**load_file(first), "model.strange": torch.ones(1)}, first)
    refused(first, "holds 'model.strange', which is no part of the model in config.json")
    (folder / "config.json").write_text("{")
    refused(folder / "config.json", "cannot be read")


def test_tokenizers_that_are_missing_or_unusable(copied: Path, tmp_path: Path, mistake: Mistake) -> None:
    folder = copied / "gpt2"
    (folder / "tokenizer_settings.json").unlink()
    (folder / "tokenizer.model").unlink()
    change(folder / "tokenizer_config.json", eos_token=None)
    change(folder / "config.json", eos_token_id=9999)
    assert "eos_token = None, and config.json has eos_token_id = 9999" in mistake("import", folder, tmp_path / "ours")
    change(folder / "tokenizer_config.json", eos_token="a new one")
    assert "vocab_size = 300, and the tokenizer has 301 ids" in mistake("import", folder, tmp_path / "ours")
    word_piece = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    word_piece.save(str(folder / "tokenizer.json"))
    assert "model is WordPiece" in mistake("import", folder, tmp_path / "ours")
    (folder / "tokenizer.json").unlink()
    assert f"'{folder / 'tokenizer.json'}' is missing" in mistake("import", folder, tmp_path / "ours")


def test_places_that_are_none_or_taken(exported: Path, tmp_path: Path, make_run: Any, mistake: Mistake) -> None:
    (tmp_path / "taken").mkdir()
    assert "'nowhere' is not a folder" in mistake("import", "nowhere", tmp_path / "ours")
    assert "taken' exists already" in mistake("import", exported / "gpt2", tmp_path / "taken")
    assert "taken' exists already" in mistake("export", make_run(), tmp_path / "taken")
    assert "dgpt import" in mistake("generate", exported / "gpt2", "a")
    assert "pytorch_model.bin' is missing" in mistake("convert-pickle", exported / "gpt2", tmp_path / "ours")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"position": "rope"}, "model.position = 'rope'"),
        ({"norm": "rmsnorm"}, "model.norm = 'rmsnorm'"),
        ({"shape": "llama", "mlp": "gelu"}, "model.mlp = 'gelu'"),
        ({"n_kv_head": 2}, "model.n_kv_head = 2"),
    ],
    ids=str,
)
def test_models_that_no_class_computes(
    settings: dict[str, Any], part: str, make_run: Any, tmp_path: Path, mistake: Mistake
) -> None:
    message = mistake("export", make_run(**settings), tmp_path / "hf")
    assert part in message
    assert "GPT2 has position = 'learned'" in message
    assert "--format dgpt" in message
    assert not list(tmp_path.glob("hf*"))


def test_a_damaged_checkpoint_is_not_handed_on(make_run: Any, tmp_path: Path, mistake: Mistake) -> None:
    run = make_run()
    (file,) = run.glob("checkpoints/*/rank_00000.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert f"{file}: expected sha256" in mistake("export", run, tmp_path / "hf")
    assert not list(tmp_path.glob("hf*"))
