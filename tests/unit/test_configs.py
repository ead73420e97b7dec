"""Every file in configs/ is a complete run, and what its comments promise is so."""

import math
import re
from pathlib import Path

import pytest

from dgpt.config import FinetuneConfig, ModelConfig, RunConfig, batch_plan, load_config, load_settings
from dgpt.model.flops import flops_per_token, parameter_count, peak_flops

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").rglob("*.toml"))
PRETRAIN = [path for path in FILES if path.parent.name == "pretrain"]
FINETUNE = [path for path in FILES if path.parent.name == "finetune"]
LARGE = [path for path in PRETRAIN if path.stem != "demo"]


def by_name(path: Path) -> str:
    return path.stem


def launch_command(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def processes(path: Path) -> tuple[int, int]:
    """Nodes, and processes on each, that the launch command names."""
    command = launch_command(path)
    nodes = re.search(r"\bNNODES=(\d+)", command)
    on_each = re.search(r"--nproc (\d+)", command)
    assert on_each, command
    return int(nodes[1]) if nodes else 1, int(on_each[1])


def model_of(config: RunConfig) -> ModelConfig:
    """The model with the vocabulary that its own tokenizer will have."""
    return config.model.model_copy(update={"vocab_size": config.model.vocab_size or config.tokenizer.vocab_size})


def tokens_of(config: RunConfig) -> int:
    return config.training.steps * config.training.global_batch_size * config.model.seq_len


def test_the_promised_files_are_there() -> None:
    assert {path.stem for path in PRETRAIN} >= {
        "demo", "gpt2_124m", "gpt2_350m", "gpt2_1_5b", "llama_1b", "llama_8b", "llama_70b",
    }  # fmt: skip
    assert {path.stem for path in FINETUNE} >= {
        "classify_demo", "qa_demo", "chat_demo", "generate_demo", "lora_imported",
    }  # fmt: skip
    assert len(PRETRAIN) + len(FINETUNE) == len(FILES)


@pytest.mark.parametrize("path", PRETRAIN, ids=by_name)
def test_the_first_line_is_a_command_that_names_the_file_itself(path: Path) -> None:
    assert f"dgpt pretrain {path.relative_to(ROOT).as_posix()} --nproc " in launch_command(path)
    assert load_config(path).run_dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", PRETRAIN, ids=by_name)
def test_it_loads_and_divides_at_the_size_of_its_launch_command(path: Path) -> None:
    config = load_config(path)
    nodes, on_each = processes(path)
    assert on_each % config.parallel.tp == 0, "TP stays inside a node"
    plan = batch_plan(config, nodes * on_each // config.parallel.tp)
    assert plan.grad_accum_steps >= 1
    with_vocabulary = load_config(path, [f"model.vocab_size={config.tokenizer.vocab_size}"])  # TP divides it too
    assert with_vocabulary.model.padded_vocab_size % config.parallel.tp == 0


@pytest.mark.parametrize("path", LARGE, ids=by_name)
def test_the_model_has_the_size_of_its_name(path: Path) -> None:
    number, unit = re.fullmatch(r"[a-z]+\d?_([\d_]+)([mb])", path.stem).groups()
    named = float(number.replace("_", ".")) * {"m": 1e6, "b": 1e9}[unit]
    assert parameter_count(model_of(load_config(path))) == pytest.approx(named, rel=0.11)


@pytest.mark.parametrize("path", LARGE, ids=by_name)
def test_tokens_devices_and_time_are_as_the_comment_says(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    promise = re.search(r"# ([\d.]+) billion tokens; on (\d+) H100 about ([\d.]+) (hours|days) at 40 %", text)
    assert promise
    tokens, devices, time, unit = promise.groups()
    config = load_config(path)
    assert tokens_of(config) == pytest.approx(float(tokens) * 1e9, rel=0.005)
    assert int(devices) == math.prod(processes(path))
    peak = peak_flops("NVIDIA H100 80GB HBM3", "bf16")
    assert peak
    seconds = tokens_of(config) * flops_per_token(model_of(config)) / (0.4 * peak * int(devices))
    assert float(time) == pytest.approx(seconds / {"hours": 3600, "days": 86400}[unit], abs=0.06)


@pytest.mark.parametrize("path", LARGE, ids=by_name)
def test_steps_in_comments_are_the_arithmetic_of_the_file(path: Path) -> None:
    config = load_config(path)
    comment = re.search(r"^steps = .*# x ([\d,]+) tokens", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert comment
    assert int(comment[1].replace(",", "")) == config.training.global_batch_size * config.model.seq_len


def test_files_that_share_a_data_folder_prepare_it_alike() -> None:
    """The second of them must find what the first one prepared to be its own."""
    first: dict[str, RunConfig] = {}
    for config in map(load_config, PRETRAIN):
        other = first.setdefault(config.data.path, config)
        assert (config.data, config.tokenizer) == (other.data, other.tokenizer), config.run_dir


def recipe(path: Path) -> FinetuneConfig:
    return load_settings(FinetuneConfig, path)


@pytest.mark.parametrize("path", FINETUNE, ids=by_name)
def test_the_first_line_of_a_recipe_is_a_command_that_names_the_file_itself(path: Path) -> None:
    assert launch_command(path) == f"dgpt finetune {path.relative_to(ROOT).as_posix()}"
    assert recipe(path).run_dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", FINETUNE, ids=by_name)
def test_a_recipe_loads_starts_from_what_is_there_and_divides_over_one_process_and_two(path: Path) -> None:
    config = recipe(path)
    made_by = f"dgpt import gpt2 {config.base}" if path.stem == "lora_imported" else ""
    assert made_by in path.read_text(encoding="utf-8")
    assert made_by or config.base == load_config(ROOT / "configs/pretrain/demo.toml").run_dir
    assert [batch_plan(config, dp).dp_size for dp in (1, 2)] == [1, 2]
    assert config.data.max_tokens <= 1024  # of GPT-2


@pytest.mark.parametrize("path", FINETUNE, ids=by_name)
def test_a_recipe_learns_the_demo_examples_of_its_task(path: Path) -> None:
    config = recipe(path)
    task = {"chat": "generation"}.get(config.data.demo, config.data.demo)
    assert config.task.kind == task
    assert (config.lora.rank > 0) == path.stem.startswith("lora")


def test_recipes_that_share_a_folder_have_the_same_examples_in_it() -> None:
    kinds = {(config.data.path, config.data.demo) for config in map(recipe, FINETUNE)}
    assert len({folder for folder, _ in kinds}) == len(kinds)
