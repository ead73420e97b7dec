"""A model to speak with, and what a refusal looks like on the command line."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dgpt.checkpoint import Checkpointer, MeshEntry, Meta
from dgpt.cli import main
from dgpt.config import parse_config
from dgpt.data.tokenizer import load_tokenizer, save_tokenizer
from dgpt.fragments import Fragment
from dgpt.model.init import build_model
from dgpt.outcome import MISTAKE


@pytest.fixture(scope="session")
def random_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 shape, seq_len 96, on the tokenizer of `tiny_data`."""
    run_dir, tokenizer = tmp_path_factory.mktemp("random_run"), load_tokenizer(tiny_data)
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "seq_len": 96, "vocab_size": tokenizer.vocab_size,
             "init_std": 0.3}  # fmt: skip
    config = parse_config({"model": shape, "run_dir": str(run_dir), "data": {"path": str(tiny_data)}}, "the tests")
    (run_dir / "tokenizer").mkdir()
    save_tokenizer(tokenizer, run_dir / "tokenizer")
    model = build_model(config.model, 3, torch.device("cpu"))
    weights = [Fragment(name, "weight", tuple(p.shape), None, 0, 1, 0, p.detach().flatten())
               for name, p in model.named_parameters()]  # fmt: skip
    writer = Checkpointer(run_dir, 0, MeshEntry(world_size=1, dp_size=1, tp=1, zero_stage=0), "a1")
    writer.save(1, weights, Meta(tokens=1, samples=1, loss=None, data_hash="", tokenizer_hash=tokenizer.hash,
                                 config=config.model_dump(mode="json")))  # fmt: skip
    writer.wait()
    return run_dir


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """mistake(argument, ...): the message of a command that must be refused."""

    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == MISTAKE
        output, errors = capsys.readouterr()
        assert output == ""
        assert "Traceback" not in errors
        assert re.fullmatch(r"dgpt: (?s:.+)\n  rule: .+\n  fix:  .+\n", errors)
        return errors.removeprefix("dgpt: ")

    return refused
