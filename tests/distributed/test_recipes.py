"""Each recipe of configs/finetune as docs/finetuning.md gives it, from raw text to answers, with a model of seconds."""

import io
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dgpt.cli import main
from dgpt.data.demo_tasks import write_demo
from dgpt.data.demo_tasks.tokens import LABELS
from dgpt.outcome import DONE
from dgpt.train.rows import read_rows

CONFIGS = Path(__file__).parents[2] / "configs" / "finetune"
DEMOS = {"classification": "classification", "qa": "extractive_qa", "chat": "chat",
         "generation": "generation"}  # fmt: skip  # folder and kind
STDLIB = sysconfig.get_path("stdlib")
DEADLINE_SECONDS = 600
PRETRAIN = f"""
run_dir = "runs/demo"
model = {{ shape = "llama", n_layer = 2, n_head = 2, n_embd = 48, seq_len = 256 }}
tokenizer = {{ vocab_size = 1000 }}
optimizer = {{ lr = 5e-3 }}
schedule = {{ warmup_steps = 5, min_lr = 1e-4 }}
training = {{ steps = 30, global_batch_size = 4, micro_batch_size = 4, eval_every_steps = 0 }}
checkpoint = {{ every_steps = 0 }}

[data]
path = "data/texts"
num_workers = 1
sources = [{{ path = "{STDLIB}/json/*.py" }}, {{ path = "{STDLIB}/email/*.py" }}]
"""
SMALL = ("data.max_examples=48", "training.steps=12", "training.global_batch_size=4", "training.micro_batch_size=4",
         "training.eval_every_steps=12", "training.eval_samples=8", "training.eval_generations=2",
         "schedule.warmup_steps=0", "optimizer.lr=5e-3", "logging.every_steps=1")  # fmt: skip


def dgpt(*arguments: str) -> str:
    """What the command prints, in a process of its own in this folder."""
    done = subprocess.run([sys.executable, "-m", "dgpt.cli", *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=DEADLINE_SECONDS)  # fmt: skip
    assert done.returncode == DONE, done.stdout + done.stderr
    return done.stdout


def finetune(recipe: str, *overrides: str) -> Path:
    """The run folder of a recipe, after a short run of it that learnt something."""
    dgpt("finetune", str(CONFIGS / f"{recipe}.toml"), *SMALL, *overrides, "--nproc", "1")
    rows = list(read_rows(Path("runs", recipe, "metrics.jsonl")))
    losses = [row["loss/train"] for row in rows if "loss/train" in row]
    assert len(losses) == 12
    assert sum(losses[-3:]) < sum(losses[:3])
    return Path("runs", recipe)


def predictions(run: Path, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    file, output = Path(f"{run.name}.jsonl"), Path(f"{run.name}.answers.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["predict", str(run), str(file), "--output", str(output)]) == DONE
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def demo_rows(kind: str, count: int) -> list[dict[str, Any]]:
    lines = Path("data/demo", kind, "validation.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/demo, as `make pretrain` leaves it."""
    folder, before = tmp_path_factory.mktemp("recipes"), Path.cwd()
    (folder / "run.toml").write_text(PRETRAIN)
    os.chdir(folder)
    try:
        assert main(["prepare", "run.toml"]) == DONE
        dgpt("pretrain", "run.toml", "--nproc", "1")
        for name, kind in DEMOS.items():
            write_demo(kind, Path("data/demo", name))
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def inside(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pretrained)


def test_classification_then_predict() -> None:
    run = finetune("classify_demo", "training.global_batch_size=24", "optimizer.lr=2e-3")  # six passes
    rows = demo_rows("classification", 5)
    answers = predictions(run, rows)
    assert [{name: row[name] for name in ("text", "label")} for row in answers] == rows
    assert all(row["prediction"]["label"] in LABELS for row in answers)
    assert (run / "confusion_matrix.png").exists()


def test_generation_then_predict() -> None:
    rows = demo_rows("generation", 3)
    answers = predictions(finetune("generate_demo"), rows)
    assert [row["prompt"] for row in answers] == [row["prompt"] for row in rows]
    assert all(isinstance(row["prediction"]["completion"], str) for row in answers)


def test_instruction_tuning_then_chat(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = finetune("chat_demo")
    monkeypatch.setattr(sys, "stdin", io.StringIO("What does dumps of module json do?\nWhich parameters?\n"))
    assert main(["chat", str(run), "--max-new-tokens", "4", "--temperature", "0"]) == DONE
    assert capsys.readouterr().out.count("\n") >= 2


def test_extractive_qa_then_predict(capsys: pytest.CaptureFixture[str]) -> None:
    run = finetune("qa_demo")
    for row in predictions(run, demo_rows("qa", 6)):
        assert row["prediction"]["answer"] in row["context"]
    capsys.readouterr()
    context = "def double(x, by=2): return x * by"
    assert main(["predict", str(run), "--context", context, "--question", "What does double return?"]) == DONE
    assert json.loads(capsys.readouterr().out)["prediction"]["answer"] in context


def test_lora_on_an_imported_model(capsys: pytest.CaptureFixture[str]) -> None:
    make_gpt2(Path("gpt2"))
    assert main(["import", "gpt2", "models/imported"]) == DONE
    run = finetune("lora_imported", "data.max_tokens=0")
    assert (run / "adapter/adapter_config.json").exists()
    capsys.readouterr()
    assert main(["generate", str(run), "def ", "--max-new-tokens", "3"]) == DONE
    assert capsys.readouterr().out.startswith("def ")
    assert main(["export", str(run), "merged"]) == DONE
    from transformers import AutoModelForCausalLM

    assert not any("lora" in name for name, _ in AutoModelForCausalLM.from_pretrained("merged").named_parameters())


def make_gpt2(folder: Path) -> None:
    """A GPT2LMHeadModel with a byte-level BPE, as `save_pretrained` writes them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    texts = [message["content"] for row in demo_rows("chat", 200) for message in row["messages"]]
    bpe.train_from_iterator(texts, trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end).save_pretrained(folder)
    config = GPT2Config(vocab_size=bpe.get_vocab_size(), n_positions=256, n_embd=32, n_layer=2, n_head=2,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
