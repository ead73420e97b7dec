"""An export or an average is a folder of its own: `dgpt generate` takes it with nothing else, from disk or URL."""

import shutil
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from dgpt.checkpoint import Checkpointer, MeshEntry, Meta, open_checkpoint, verify
from dgpt.cli import main
from dgpt.config import RunConfig, load_config, parse_config
from dgpt.data.tokenizer import load_tokenizer, save_tokenizer
from dgpt.fragments import Fragment
from dgpt.generate import load_model
from dgpt.model.gpt import GPT
from dgpt.outcome import DONE, MISTAKE
from dgpt.storage import place


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a tokenizer and the checkpoints of two random models, steps 1 and 2."""
    run_dir, tokenizer = tmp_path_factory.mktemp("run"), load_tokenizer(tiny_data)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "seq_len": 16, "vocab_size": tokenizer.vocab_size}
    config = parse_config({"model": shape, "seed": 7}, "the tests")
    (run_dir / "tokenizer").mkdir()
    save_tokenizer(tokenizer, run_dir / "tokenizer")
    mesh = MeshEntry(world_size=1, dp_size=1, tp=1, zero_stage=0)
    writer = Checkpointer(run_dir, 0, mesh, "a1")
    for step in (1, 2):
        writer.save(step, random_weights(config, step), Meta(
            tokens=step, samples=step, loss=None, data_hash="", tokenizer_hash=tokenizer.hash,
            config=config.model_dump(mode="json"),
        ))  # fmt: skip
    writer.wait()
    return run_dir


def random_weights(config: RunConfig, seed: int) -> list[Fragment]:
    torch.manual_seed(seed)
    return [Fragment(name, "weight", tuple(p.shape), None, 0, 1, 0, torch.randn(p.numel()))
            for name, p in GPT(config.model).named_parameters()]  # fmt: skip


def weights(path: object) -> dict[str, torch.Tensor]:
    model, _ = load_model(str(path))
    return dict(model.named_parameters())


def sample(path: object, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["generate", str(path), "ab", "--max-new-tokens", "8", "--temperature", "0"]) == DONE
    return capsys.readouterr().out


def test_an_export_generates_the_same_text_with_nothing_else(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "somewhere" / "model"
    assert main(["export", str(run), str(output), "--format", "dgpt"]) == DONE
    assert capsys.readouterr().out.startswith(f"{output}: weights of step 2 in fp32, ")
    names = {"config.toml", "manifest.json", "manifest.sha256", "rank_00000.safetensors", "tokenizer"}
    assert {path.name for path in output.iterdir()} == names
    assert load_config(output / "config.toml").seed == 7
    assert verify(output) == []
    alone = shutil.copytree(output, tmp_path / "alone")
    assert sample(alone, capsys) == sample(run, capsys)
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(alone).items())


def test_a_size_of_shards_is_refused_where_there_are_none(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--format", "dgpt", "--max-shard-size", "1GB"
    assert main(["export", str(run), str(tmp_path / "model"), *options]) == MISTAKE
    assert "dgpt: --max-shard-size with --format dgpt\n" in capsys.readouterr().err


def test_checkpoints_may_be_a_link_to_another_disk(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linked = shutil.copytree(run, tmp_path / "run")
    (linked / "checkpoints").rename(tmp_path / "scratch")
    (linked / "checkpoints").symlink_to(tmp_path / "scratch")
    assert sample(linked, capsys) == sample(run, capsys)
    (tmp_path / "best").symlink_to(run / "checkpoints" / "step_00000002")
    assert sample(tmp_path / "best", capsys) == sample(run, capsys)


def test_bf16_is_rounded_once_and_generates(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), str(tmp_path / "model"), "--format", "dgpt", "--dtype", "bf16"]) == DONE
    exact = weights(run)
    for name, tensor in weights(tmp_path / "model").items():
        assert torch.equal(tensor, exact[name].bfloat16().float())
    capsys.readouterr()
    assert sample(tmp_path / "model", capsys).startswith("ab")


def test_a_model_goes_to_a_url_and_is_used_from_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "memory://test-export/model"
    try:
        assert main(["export", str(run / "checkpoints" / "step_00000001"), url, "--format", "dgpt"]) == DONE
        assert main(["checkpoint", "verify", url]) == DONE
        assert main(["checkpoint", "diff", url, str(run / "checkpoints" / "step_00000001")]) == DONE
        assert main(["export", str(run), url, "--format", "dgpt"]) == MISTAKE
        capsys.readouterr()
        assert sample(url, capsys) == sample(run / "checkpoints" / "step_00000001", capsys)
    finally:
        MemoryFileSystem().rm("memory://test-export", recursive=True)


def test_an_average_generates_and_is_the_mean(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [str(run / "checkpoints" / f"step_{step:08d}") for step in (1, 2)]
    assert main(["checkpoint", "average", *both, "--output", str(tmp_path / "mean")]) == DONE
    assert "mean weights of 2 checkpoints" in capsys.readouterr().out
    assert open_checkpoint(tmp_path / "mean").manifest.step == 2
    first, second = map(weights, both)
    for name, tensor in weights(tmp_path / "mean").items():
        assert torch.equal(tensor, ((first[name].double() + second[name].double()) / 2).float())
    assert sample(tmp_path / "mean", capsys).startswith("ab")


def test_an_average_of_one_given_twice_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = str(run / "checkpoints" / "step_00000002")
    again = f"{run}/../{run.name}"
    assert main(["checkpoint", "average", again, newest, "--output", str(tmp_path / "mean")]) == MISTAKE
    assert f"{newest} is given 2 times" in capsys.readouterr().err


def test_another_tokenizer_is_refused_by_generate_and_verify(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), str(tmp_path / "model"), "--format", "dgpt"]) == DONE
    settings = tmp_path / "model" / "tokenizer" / "tokenizer_settings.json"
    settings.write_text(settings.read_text().replace("\n}", ' ,\n "more": 1}'))  # another file, the same tokenizer
    assert main(["checkpoint", "verify", str(tmp_path / "model")]) == DONE
    settings.write_text(settings.read_text().replace('"special_tokens": {', '"special_tokens": {"<new>": 300, '))
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "model"), "ab"]) == MISTAKE
    assert "was trained with" in capsys.readouterr().err
    assert main(["checkpoint", "verify", str(tmp_path / "model")]) == MISTAKE
    assert "was trained with" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "model" / "tokenizer")
    assert main(["generate", str(tmp_path / "model"), "ab"]) == MISTAKE
    assert f"'{tmp_path / 'model' / 'tokenizer'}' is missing" in capsys.readouterr().err
    assert main(["checkpoint", "verify", str(tmp_path / "model")]) == MISTAKE
    assert "/tokenizer' is missing" in capsys.readouterr().out


def test_an_export_without_a_tokenizer_leaves_nothing(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints", tmp_path / "bare" / "checkpoints")
    assert main(["export", str(tmp_path / "bare"), str(tmp_path / "model")]) == MISTAKE
    assert not place(tmp_path / "model").exists()
