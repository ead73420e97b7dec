"""`dgpt finetune` and `predict` as a whole, in one process: what is learnt, kept, resumed and said."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dgpt import finetune as finetuning
from dgpt import lora
from dgpt import runtime as processes
from dgpt.checkpoint.files import step_folders
from dgpt.checkpoint.find import open_checkpoint
from dgpt.cli import main
from dgpt.config import FinetuneConfig, load_settings
from dgpt.finetune import Finetuning
from dgpt.finetuned import load_finetuned, whole_model
from dgpt.generate import load_model, tokenizer_of
from dgpt.model.gpt import GPT
from dgpt.outcome import DONE, STOPPED
from dgpt.pulse import Pulse
from dgpt.tasks.evaluate import evaluate_task
from dgpt.train.rows import read_rows
from dgpt.watch.heartbeat import Heartbeat

WORDS = ["ba", "fe", "gio", "kou", "la_x", "ni12", "me", "du"]
CPU = torch.device("cpu")
QUICK = ("logging.tensorboard=false", "precision.dtype=fp32", "training.global_batch_size=8", "optimizer.lr=3e-3",
         "training.micro_batch_size=4", "training.eval_every_steps=0", "checkpoint.every_steps=0")  # fmt: skip


def write(folder: Path, rows: Callable[[random.Random], dict[str, Any]], train: int, validation: int) -> Path:
    rng = random.Random(0)
    folder.mkdir()
    for name, count in (("train", train), ("validation", validation)):
        lines = (json.dumps(rows(rng), ensure_ascii=False) + "\n" for _ in range(count))
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def kind_of_text(rng: random.Random) -> dict[str, Any]:
    """Separable: the class is the last word of the text."""
    label = rng.choice(["left", "right"])
    words = [*rng.choices(WORDS, k=rng.randint(1, 8)), {"left": "neren", "right": "gous"}[label]]
    return {"text": " ".join(words), "label": label}


def echo(rng: random.Random) -> dict[str, Any]:
    words = rng.choices(WORDS, k=rng.randint(1, 6))
    return {"prompt": f"{' '.join(words)} =>", "completion": f" {words[0]}"}


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("texts") / "data", kind_of_text, 400, 100)


@pytest.fixture(scope="session")
def echoes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("echoes") / "data", echo, 120, 20)


@pytest.fixture(scope="session")
def classifier(random_run: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learnt the classes; tests must not change it."""
    run = tmp_path_factory.mktemp("classifier") / "run"
    arguments = [f"base={random_run}", f"data.path={texts}", f"run_dir={run}", "task.kind=classification", *QUICK,
                 "training.steps=80", "training.eval_every_steps=20", "best.metric=accuracy", "checkpoint.keep_last=1",
                 "training.micro_batch_size=8", "optimizer.lr=2e-3", "logging.tensorboard=true"]  # fmt: skip
    assert finetune(run.parent, *arguments) == DONE
    return run


def finetune(folder: Path, *overrides: str) -> int:
    (folder / "task.toml").touch()
    return main(["finetune", str(folder / "task.toml"), *overrides])


def test_a_classifier_learns_what_can_be_told_apart(classifier: Path, texts: Path) -> None:
    results = [row["validation/accuracy"] for row in read_rows(classifier / "metrics.jsonl")
               if "validation/accuracy" in row]  # fmt: skip
    assert len(results) == 4
    best = json.loads((classifier / "best.json").read_text())
    assert best["accuracy"] == max(filter(None, results)) > 0.95
    assert (classifier / "checkpoints" / best["checkpoint"] / "manifest.json").exists()
    model = load_finetuned(classifier)
    assert model.config.task.labels == ("left", "right")
    rows = [json.loads(line) for line in (texts / "validation.jsonl").read_text().splitlines()]
    assert evaluate_task(model, rows)["accuracy"] == pytest.approx(best["accuracy"])


def test_the_best_checkpoint_outlives_newer_ones(classifier: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(classifier, tmp_path / "run"))
    best = json.loads((run / "best.json").read_text())["checkpoint"]
    assert finetune(tmp_path, *settings_of(run), "training.steps=84", "checkpoint.every_steps=1",
                    "training.eval_every_steps=0") == DONE  # fmt: skip
    assert {folder.name for folder in step_folders(run / "checkpoints")} >= {best, "step_00000084"}
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == DONE
    assert {folder.name for folder in step_folders(run / "checkpoints")} == {best, "step_00000084"}


def settings_of(run: Path) -> list[str]:
    config = load_settings(FinetuneConfig, run / "config.toml")
    return [f"base={config.base}", f"data.path={config.data.path}", f"run_dir={run}", "task.kind=classification",
            *QUICK, "optimizer.lr=2e-3", "best.metric=accuracy", "checkpoint.keep_last=1",
            "training.micro_batch_size=8"]  # fmt: skip


def test_the_confusion_matrix_is_in_the_run_folder_and_in_tensorboard(classifier: Path) -> None:
    assert (classifier / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    events = next((classifier / "tensorboard").glob("events.*")).read_bytes()
    assert events.count(b"\x89PNG") == 4


def test_predict_answers_a_file_and_a_single_text(
    classifier: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "answers.jsonl"
    assert main(["predict", str(classifier), str(texts / "validation.jsonl"), "--output", str(output),
                 "--batch-size", "7"]) == DONE  # fmt: skip
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    right = [row["label"] == row["prediction"]["label"] for row in answers]
    assert len(right) == 100
    assert sum(right) > 95
    assert all(sum(row["prediction"]["scores"].values()) == pytest.approx(1, abs=1e-5) for row in answers)
    capsys.readouterr()
    assert main(["predict", str(classifier), "--text", answers[0]["text"]]) == DONE
    assert json.loads(capsys.readouterr().out)["prediction"]["label"] == answers[0]["prediction"]["label"]


@pytest.mark.parametrize("how", ["full", "lora"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    random_run: Path, echoes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    settings = [f"base={random_run}", f"data.path={echoes}", *QUICK, "training.dropout=0.1", "training.steps=7",
                "logging.every_steps=1", "training.eval_every_steps=3", "task.max_new_tokens=4",
                "training.eval_generations=4", "best.keep=false",
                *["lora.rank=4", "lora.dropout=0.1"] * (how == "lora")]  # fmt: skip
    states: list[dict[tuple[str, str], str]] = []
    stop_at = [0]

    class Watched(Finetuning):
        def run(self) -> int:
            step, numbers = self.engine.step, iter(range(self.start_step + 1, 99))

            def stepping(lr: float) -> float:
                if next(numbers) == stop_at[0]:
                    os.kill(os.getpid(), signal.SIGUSR1)
                return step(lr)

            monkeypatch.setattr(self.engine, "step", stepping)
            code = super().run()
            states.append({(f.name, f.state): sha256(f.tensor.detach().numpy().tobytes()).hexdigest()
                           for f in self.engine.fragments()})  # fmt: skip
            return code

    monkeypatch.setattr(finetuning, "Finetuning", Watched)
    before = signal.getsignal(signal.SIGUSR1)
    try:
        assert finetune(tmp_path, *settings, f"run_dir={tmp_path / 'whole'}") == DONE
        stop_at[0] = 3
        assert finetune(tmp_path, *settings, f"run_dir={tmp_path / 'cut'}") == STOPPED
        assert finetune(tmp_path, *settings, f"run_dir={tmp_path / 'cut'}") == DONE
    finally:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, before if number != signal.SIGINT else signal.default_int_handler)
    whole, cut, resumed = states
    assert whole == resumed != cut
    assert {state for _, state in whole} == {"weight", "exp_avg", "exp_avg_sq"}
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 7 + 3


def losses(run: Path) -> list[tuple[float | None, ...]]:
    rows = list(read_rows(run / "metrics.jsonl"))
    return [(row["step"], row.get("loss/train"), row.get("loss/validation"), row.get("validation/rouge_l"))
            for row in rows]  # fmt: skip


def test_signs_of_life_allow_for_what_only_some_ranks_do(
    random_run: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for the others' answers is ahead of them and patient, and the adapter is written before the last
    seconds of the process begin."""
    told: list[str] = []

    def note(place: object, name: str, word: Callable[..., str]) -> None:
        before: Callable[..., Any] = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *given: (told.append(word(*given)), before(*given))[1])

    note(Heartbeat, "enter", lambda heart, step, phase: phase)
    note(Heartbeat, "alive", lambda heart: "alive")
    note(Pulse, "patient", lambda pulse: "patient")
    note(lora, "write_adapter", lambda *_: "adapter")
    note(processes, "end_within", lambda seconds: "last seconds")
    arguments = [f"base={random_run}", f"data.path={texts}", f"run_dir={tmp_path / 'run'}", "lora.rank=2", *QUICK,
                 "task.kind=classification", "training.steps=1", "training.eval_every_steps=1"]  # fmt: skip
    assert finetune(tmp_path, *arguments) == DONE
    at = told.index("patient")
    assert told[at - 4 : at] == ["alive", "alive", "evaluate", "alive"]
    assert told.index("adapter") < told.index("last seconds")


def test_each_token_is_a_sign_of_life(random_run: Path, echoes: Path, tmp_path: Path, monkeypatch: Any) -> None:
    signs, alive = [], Heartbeat.alive
    monkeypatch.setattr(Heartbeat, "alive", lambda heart: (signs.append(None), alive(heart))[1])
    assert finetune(tmp_path, f"base={random_run}", f"data.path={echoes}", f"run_dir={tmp_path / 'run'}", *QUICK,
                    "training.steps=1", "training.eval_every_steps=1", "task.max_new_tokens=30") == DONE  # fmt: skip
    assert len(signs) > 30 * (20 // 4), "20 answers of 30 tokens from random weights, 4 at a time"


@pytest.mark.parametrize("kind", ["generation", "classification"])
def test_lora_merged_computes_as_the_adapter_does(
    random_run: Path, echoes: Path, texts: Path, tmp_path: Path, kind: str
) -> None:
    """And peft reads the adapter of the run folder, which holds nothing else."""
    data, run = (echoes if kind == "generation" else texts), tmp_path / "run"
    settings = [f"base={random_run}", f"data.path={data}", f"task.kind={kind}", f"run_dir={run}", *QUICK,
                "training.steps=4", "lora.rank=4", 'lora.targets=["attn.q","attn.proj","mlp.up"]']  # fmt: skip
    assert finetune(tmp_path, *settings) == DONE
    merged = load_finetuned(run)

    def plain() -> GPT:
        return merged.task.model(whole_model(open_checkpoint(random_run), merged.tokenizer, CPU))

    from peft import PeftModel

    untouched = plain()
    adapted = PeftModel.from_pretrained(plain(), str(run / lora.FOLDER)).eval()
    tokens = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    inputs = (tokens,) if kind == "generation" else (tokens, torch.tensor([19, 5, 11]))
    with torch.no_grad():
        assert torch.allclose(adapted(*inputs), merged.model(*inputs), atol=1e-5)
        assert not torch.allclose(untouched(*inputs), merged.model(*inputs), atol=1e-3)
    assert dict(merged.model.named_parameters()).keys() == dict(untouched.named_parameters()).keys()
    saved = load_file(run / lora.FOLDER / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in saved} == {"lora_A", "lora_B", *["task_head"] * (kind == "classification")}
    assert len(saved) == len(open_checkpoint(run).manifest.tensors)


def test_a_run_ends_early_when_nothing_gets_better_and_stays_ended(
    random_run: Path, echoes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"base={random_run}", f"data.path={echoes}", f"run_dir={tmp_path / 'run'}", *QUICK,
                 "training.steps=40", "training.eval_every_steps=2", "training.eval_generations=0", "best.patience=2",
                 "best.min_delta=100.0"]  # fmt: skip
    assert finetune(tmp_path, *arguments) == DONE
    assert "finished early, 2 evaluations after the best: step 6" in capsys.readouterr().out
    assert finetune(tmp_path, *arguments) == DONE
    assert "finished before:" in (again := capsys.readouterr().out)
    assert "ended early at step 6" in again
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert (best["checkpoint"], best["step"]) == ("step_00000002", 2)


def test_a_fine_tuned_model_writes_and_is_a_base_itself(
    random_run: Path, echoes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, more = tmp_path / "run", tmp_path / "more"
    for base, target in ((random_run, run), (run, more)):
        assert finetune(tmp_path, f"base={base}", f"data.path={echoes}", f"run_dir={target}", *QUICK, "lora.rank=2",
                        "training.steps=2") == DONE  # fmt: skip
    capsys.readouterr()
    assert main(["generate", str(more), "ba fe =>", "--max-new-tokens", "4"]) == DONE
    assert capsys.readouterr().out.startswith("ba fe =>")
    model, tokenizer = load_model(more)
    assert tokenizer.hash == tokenizer_of(open_checkpoint(random_run)).hash
    weights, before = model.state_dict(), load_model(random_run)[0].state_dict()
    assert weights.keys() == before.keys()
    changed = {name for name in weights if not torch.equal(weights[name], before[name])}
    assert changed == {f"blocks.{i}.attn.{n}.weight" for i in range(2) for n in ("q", "k", "v", "proj")}


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_updates_learn_the_same_where_blocks_are_recomputed(
    random_run: Path, echoes: Path, tmp_path: Path, policy: str
) -> None:
    """The embedding is frozen, so that nothing before the first block asks for gradients."""
    curves = []
    for name in ("none", policy):
        run = tmp_path / name
        settings = [
            "lora.rank=2",
            "training.steps=3",
            "logging.every_steps=1",
            f"activation_checkpointing.policy={name}",
        ]
        where = [f"base={random_run}", f"data.path={echoes}", f"run_dir={run}"]
        assert finetune(tmp_path, *where, *QUICK, *settings) == DONE
        curves.append([(row["loss/train"], row["optimizer/grad_norm"]) for row in read_rows(run / "metrics.jsonl")])
    assert curves[0] == curves[1]
    assert all(norm for _, norm in curves[0] if norm is not None)
