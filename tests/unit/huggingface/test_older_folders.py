"""Folders as the hub has them of GPT-2, written before transformers put everything where it does now."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgpt.cli import main
from dgpt.data.tokenizer import load_tokenizer
from dgpt.outcome import DONE


@pytest.fixture
def folder(make_run: Any, tmp_path: Path) -> Path:
    """An export without dgpt's own files."""
    path = tmp_path / "hf"
    assert main(["export", str(make_run()), str(path)]) == DONE
    for name in ("tokenizer_settings.json", "tokenizer.model"):
        (path / name).unlink()
    return path


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))


def end_of_imported(folder: Path) -> str:
    ours = folder.with_name("ours")
    assert main(["import", str(folder), str(ours)]) == DONE
    return load_tokenizer(ours / "tokenizer").end_of_document


@pytest.mark.parametrize("token", ["<|endoftext|>", {"content": "<|endoftext|>", "lstrip": False}], ids=str)
def test_the_end_token_may_be_in_the_map_of_special_tokens(folder: Path, token: Any) -> None:
    change(folder / "tokenizer_config.json", eos_token=None)
    change(folder / "config.json", eos_token_id=None)
    change(folder / "special_tokens_map.json", eos_token=token)
    assert end_of_imported(folder) == "<|endoftext|>"


@pytest.mark.parametrize("several", [False, True])
def test_the_end_token_may_be_a_number_in_the_settings(folder: Path, several: bool) -> None:
    (folder / "tokenizer_config.json").unlink()
    if several:
        end = json.loads((folder / "config.json").read_text())["eos_token_id"]
        change(folder / "config.json", eos_token_id=[end, 99])
    assert end_of_imported(folder) == "<|endoftext|>"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("pickled", [False, True])
def test_masks_beside_the_weights_may_be_of_any_type(
    folder: Path, tmp_path: Path, dtype: torch.dtype, pickled: bool
) -> None:
    weights = folder / "model.safetensors"
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 48, 48, dtype=dtype).tril() for i in range(2)}
    save_file(load_file(weights) | masks, weights)
    if pickled:
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
        assert main(["convert-pickle", str(folder), str(tmp_path / "converted")]) == DONE
        folder = tmp_path / "converted"
    assert main(["import", str(folder), str(tmp_path / "ours")]) == DONE
