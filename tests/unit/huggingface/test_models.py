"""A model is the same in dgpt and in transformers, whichever of the two it comes from."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dgpt import export as exporting
from dgpt.cli import main
from dgpt.config import TaskConfig
from dgpt.data.tokenizer import Tokenizer, load_tokenizer
from dgpt.generate import load_model
from dgpt.model.generate import generate_texts
from dgpt.model.gpt import GPT
from dgpt.model.sampling import Sampling
from dgpt.outcome import DONE

TOKENS = torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(0))
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt2_untied": {"tie_embeddings": False, "n_ff": 72},
    "gpt2_without_biases": {"bias": False},
    "llama": {"shape": "llama", "rope_theta": 500000.0, "norm_eps": 1e-6},
    "llama_tied_gqa": {"shape": "llama", "tie_embeddings": True, "n_kv_head": 2},
    "llama_with_biases": {"shape": "llama", "bias": True},
}


def export(run: Path, output: Path, *options: str) -> Path:
    assert main(["export", str(run), str(output), *options]) == DONE
    return output


def import_(folder: Path, output: Path) -> Path:
    assert main(["import", str(folder), str(output)]) == DONE
    return output


def theirs(folder: Path) -> nn.Module:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return model.eval()


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_equal_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(tensor, b[name]) and tensor.dtype == b[name].dtype for name, tensor in a.items())


@torch.no_grad()
def assert_equal_logits(ours: GPT, reference: nn.Module, rows: int = 300) -> None:
    expected = reference(TOKENS).logits
    assert expected.std() > 0.5  # a comparison of something
    torch.testing.assert_close(ours(TOKENS)[..., :rows], expected[..., :rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES.keys())
def test_logits_are_equal_both_ways_and_weights_come_back_unchanged(
    settings: dict[str, Any], tp: int, make_run: Any, tmp_path: Path
) -> None:
    run = make_run(tp, **settings)
    folder = export(run, tmp_path / "hf")
    ours, tokenizer = load_model(run)
    reference = theirs(folder)
    assert_equal_logits(ours, reference)
    back, same = load_model(import_(folder, tmp_path / "back"))
    assert_equal_logits(back, reference)
    assert same.hash == tokenizer.hash
    before = dict(ours.named_parameters())
    for name, tensor in back.named_parameters():
        if name in before:  # without the rows of padding
            assert torch.equal(tensor, before[name][: len(tensor)])
        else:
            assert not tensor.any()  # GPT-2 of transformers has biases
    again = export(tmp_path / "back", tmp_path / "again")
    assert_equal_bits(stored(again), stored(folder))


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_greedy_texts_are_equal_token_by_token(shape: str, make_run: Any, tmp_path: Path) -> None:
    run = make_run(shape=shape)
    folder = export(run, tmp_path / "hf")
    ours, tokenizer = load_model(run)
    other = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt in ("baren io_x ", "", "日本"):
        ids = other(prompt or other.eos_token, return_tensors="pt", split_special_tokens=bool(prompt))
        sequence = theirs(folder).generate(**ids, max_new_tokens=20, do_sample=False)[0, ids.input_ids.size(1) :]
        text = "" if prompt else tokenizer.end_of_document
        (mine,) = generate_texts(ours, tokenizer, [prompt], Sampling(max_new_tokens=20, temperature=0))
        expected = tokenizer.decode(sequence.tolist()).removesuffix(tokenizer.end_of_document)
        assert (mine.text, text + prompt) == (expected, other.decode(ids.input_ids[0]))


def test_a_model_of_transformers_comes_back_bit_by_bit(tokenizer: Tokenizer, make_run: Any, tmp_path: Path) -> None:
    """Older files of GPT-2 name tensors without the model's own name, and hold buffers; rows of padding stay."""
    exported = export(make_run(), tmp_path / "exported")
    end = {"bos_token_id": tokenizer.eod_id, "eos_token_id": tokenizer.eod_id}
    config = transformers.GPT2Config(vocab_size=320, n_positions=48, n_embd=32, n_layer=2, n_head=4, **end)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=float(parameter.dim() == 1), std=0.2)
    old = tmp_path / "old"
    model.save_pretrained(old)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (old / name).write_bytes((exported / name).read_bytes())
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in stored(old).items()}
    tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 48, 48) for i in range(2)}
    save_file(tensors, old / "model.safetensors")
    ours, own = load_model(import_(old, tmp_path / "ours"))
    assert_equal_logits(ours, model, rows=320)
    assert own.vocab_size == 300 < len(ours.wte.weight) == 320
    back = stored(export(tmp_path / "ours", tmp_path / "back"))
    for name, tensor in model.transformer.named_parameters(prefix="transformer"):
        assert torch.equal(back[name], tensor[:300] if name.endswith("wte.weight") else tensor)


def test_shards_have_an_index_and_come_back(make_run: Any, tmp_path: Path) -> None:
    run = make_run(2, shape="llama")
    whole = export(run, tmp_path / "whole")
    folder = export(run, tmp_path / "shards", "--max-shard-size", "40KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {path.name for path in folder.glob("*.safetensors")}
    assert (
        files
        == set(index["weight_map"].values())
        == {f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)}
    )
    assert len(files) > 3
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored(whole).values())
    sizes = {name: sum(t.nbytes for t in load_file(folder / name).values()) for name in files}
    assert all(size <= 40_000 or len(load_file(folder / name)) == 1 for name, size in sizes.items())
    assert_equal_bits(stored(folder), stored(whole))
    assert_equal_logits(load_model(import_(folder, tmp_path / "back"))[0], theirs(folder))


def test_bf16_is_rounded_once_and_stays_so(make_run: Any, tmp_path: Path) -> None:
    run = make_run(shape="llama")
    exact = stored(export(run, tmp_path / "fp32"))
    rounded = stored(export(run, tmp_path / "bf16", "--dtype", "bf16"))
    assert_equal_bits(rounded, {name: tensor.bfloat16() for name, tensor in exact.items()})
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["dtype"] == "bfloat16"
    import_(tmp_path / "bf16", tmp_path / "ours")
    assert {t.dtype for t in stored(tmp_path / "ours").values()} == {torch.bfloat16}
    assert_equal_bits(stored(export(tmp_path / "ours", tmp_path / "again", "--dtype", "bf16")), rounded)


def test_a_card_states_the_facts_and_no_paths(make_run: Any, tmp_path: Path) -> None:
    run = make_run()
    card = (export(run, tmp_path / "hf") / "README.md").read_text()
    for fact in ("library_name: transformers", "| tokens trained on | 1,000 |", "| loss of the last step | 2.5000 |",
                 "| data (sha256 of the prepared tokens) | " + "d" * 64, "optimizer.lr = 0.0006"):  # fmt: skip
        assert fact in card
    assert "run_dir" not in card
    assert "data/" not in card


def test_a_card_knows_nothing_of_a_training_elsewhere_and_names_rows_as_rows(make_run: Any, tmp_path: Path) -> None:
    ours = import_(export(make_run(), tmp_path / "hf"), tmp_path / "ours")
    card = (export(ours, tmp_path / "again") / "README.md").read_text()
    assert "| training | elsewhere; `dgpt import` knows nothing of it |" in card
    assert "model.n_embd = 32" in card
    for unknown in ("optimizer", "tokens trained on", "sha256 of the prepared tokens", "schedule.", "training."):
        assert unknown not in card
    tuned = make_run(1, TaskConfig(kind="generation"))
    card = (export(tuned, tmp_path / "tuned") / "README.md").read_text()
    assert "| data (sha256 of the training rows) | " + "d" * 64 in card


def test_an_imported_model_is_what_every_verb_takes(
    make_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(import_(export(make_run(), tmp_path / "hf"), tmp_path / "ours"))
    assert main(["checkpoint", "verify", model]) == DONE
    assert main(["checkpoint", "show", model]) == DONE
    assert load_tokenizer(tmp_path / "ours" / "tokenizer").vocab_size == 300
    capsys.readouterr()
    assert main(["generate", model, "ba", "--max-new-tokens", "4"]) == DONE
    assert capsys.readouterr().out.startswith("ba")


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_an_export_holds_the_tensors_of_one_layer_and_no_more(
    shape: str, make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q, k and v of GPT-2 with their biases wait for each other; else one is written when the next is read."""
    given: list[weakref.ref[Tensor]] = []
    most, read = [], exporting.read_tensor

    def watched(*arguments: Any) -> Tensor:
        tensor = read(*arguments)
        given.append(weakref.ref(tensor))
        most.append(sum(reference() is not None for reference in given))
        return tensor

    monkeypatch.setattr(exporting, "read_tensor", watched)
    export(make_run(2, shape=shape, n_layer=6), tmp_path / "hf")
    assert len(most) > 50
    assert max(most) <= (7 if shape == "gpt2" else 2)
