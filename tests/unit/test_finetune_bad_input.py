"""Mistakes in a fine-tuning: file, line, value, rule and fix; exit code 2, and no stack trace."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpt.cli import main
from dgpt.outcome import DONE, MISTAKE

Mistake = Callable[..., str]
QUICK = ("logging.tensorboard=false", "training.global_batch_size=2", "training.micro_batch_size=1", "training.steps=1",
         "training.eval_every_steps=0")  # fmt: skip
GOOD: dict[str, dict[str, Any]] = {
    "classification": {"text": "ba fe", "label": "x"},
    "generation": {"prompt": "ba", "completion": "fe"},
    "extractive_qa": {"context": "ba fe gio", "question": "ba?", "answers": {"text": ["fe"], "answer_start": [3]}},
}
OTHER = {"classification": {"text": "gio", "label": "y"}}


@pytest.fixture
def mistake(random_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Mistake:
    """mistake(kind, line, *overrides): the message for a third line of train.jsonl, after two good ones."""

    def refused(kind: str, line: str | dict[str, Any] | None, *overrides: str) -> str:
        good = [GOOD[kind], OTHER.get(kind, GOOD[kind])]
        lines = [*map(json.dumps, good), *[json.dumps(line) if isinstance(line, dict) else line] * (line is not None)]
        (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
        (tmp_path / "task.toml").touch()
        settings = [f"base={random_run}", f"run_dir={tmp_path / 'run'}", f"data.path={tmp_path}", f"task.kind={kind}",
                    "task.stride_tokens=8", "data.validation_fraction=0.0", *QUICK]  # fmt: skip
        assert main(["finetune", str(tmp_path / "task.toml"), *settings, *overrides]) == MISTAKE
        output, errors = capsys.readouterr()
        assert output == ""
        assert re.fullmatch(r"dgpt: (?s:.+)\n  rule: .+\n  fix:  .+\n", errors)
        assert not (tmp_path / "run" / "checkpoints").exists()
        return errors.removeprefix("dgpt: ").replace(str(tmp_path), "DIR")

    return refused


QA = GOOD["extractive_qa"]


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("classification", {"text": "ba"}, "no field 'label'; it has text"),
        ("classification", {"sentence": "ba", "label": "x"}, "no field 'text'; it has sentence, label"),
        ("classification", {"text": " ", "label": "x"}, "field 'text' is empty"),
        ("classification", {"text": 7, "label": "x"}, "field 'text' holds 7"),
        ("classification", {"text": "ba", "label": None}, "field 'label' is null"),
        ("classification", '{"text": "ba", "label": "\\ud800"}', "field 'label' is not valid Unicode"),
        ("classification", {"text": "ba", "label": [1]}, "field 'label' holds [1]"),
        ("classification", {"text": "ba " * 99, "label": "x"}, "the example has "),
        ("classification", '{"text": "\\ud800", "label": "x"}', "field 'text' is not valid Unicode"),
        ("classification", '{"text": "ba"', "Expecting ',' delimiter"),
        ("classification", "[1]", "[1] is no JSON object"),
        ("classification", "[" * 100_000, "maximum recursion depth exceeded"),
        ("generation", {"prompt": "ba"}, "no field 'completion'; it has prompt"),
        ("generation", {"prompt": "ba", "completion": ""}, "field 'completion' is empty"),
        ("generation", {"prompt": "ba " * 99, "completion": "fe"}, "the example has "),
        ("generation", {"messages": []}, "messages = []"),
        ("generation", {"messages": [{"role": "robot", "content": "ba"}]}, "message 1 of 1 has the role 'robot'"),
        ("generation", {"messages": [{"role": "user", "content": "ba"}]}, "no message of the assistant"),
        ("generation", '{"messages": [{"role": "assistant", "content": "ba \\udc00"}]}',
         "message 1 of 1 is not valid Unicode"),
        ("extractive_qa", {**QA, "answers": {"text": ["fe"], "answer_start": [99]}},
         "answer 'fe' at character 99 is outside the context of 9"),
        ("extractive_qa", {**QA, "answers": {"text": ["fe"], "answer_start": [-1]}},
         "answer 'fe' at character -1 is outside"),
        ("extractive_qa", {**QA, "answers": {"text": ["fe"], "answer_start": [4]}},
         "answer 'fe' is not at character 4: there stands 'e '"),
        ("extractive_qa", {**QA, "answers": {"text": ["fe"], "answer_start": []}}, "field 'answers' holds {'text'"),
        ("extractive_qa", {**QA, "question": "ba " * 99}, "the question has "),
        ("extractive_qa", {"context": "ba", "question": "fe?"}, "no field 'answers'; it has context, question"),
    ],
)  # fmt: skip
def test_a_bad_row(mistake: Mistake, kind: str, line: Any, message: str) -> None:
    assert mistake(kind, line).startswith(f"file 'DIR/train.jsonl', line 3: {message}")


def test_a_label_that_is_not_known(mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "validation.jsonl").write_text('\n{"text": "ba", "label": "z"}\n', encoding="utf-8")
    told = mistake("classification", None)
    assert told.startswith(
        "file 'DIR/validation.jsonl', line 2: label 'z' is not known\n  rule: the classes are x, y\n"
    )
    told = mistake("classification", {"text": "ba", "label": "aply"}, 'task.labels=["x","y","apply"]')
    assert "line 3: label 'aply' is not known" in told
    assert "did you mean 'apply'?" in told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("base=/nowhere", "checkpoint /nowhere: is neither a checkpoint nor a run folder with checkpoints"),
        ("base=", "base = '' names no model"),
        ("run_dir=", "run_dir = '': string should have at least 1 character"),
        ("data.path=/nowhere", "file '/nowhere/train.jsonl' does not exist"),
        ("data.train=task.txt", "file 'task.txt' does not exist"),
        ("data.max_tokens=97", "data.max_tokens = 97 is above the base's seq_len = 96"),
        ("model.n_layer=3", "is of another model: model.n_layer = 2 there, 3 in this run"),
        ("task.kind=sorting", "1 setting cannot be used:\n  - task.kind = 'sorting'"),
        ("best.metric=f1", "1 setting cannot be used:\n  - best.metric = 'f1' is no result of task.kind"),
        ("parallel.zero_stage=2", "parallel.zero_stage = 2 with one process"),
        ("training.global_batch_size=50", "2 training samples are fewer than training.global_batch_size = 50"),
        ("schedule.warmup_steps=9", "schedule.warmup_steps = 9 and decay_steps = 0 take 9 steps of training.steps = 1"),
        ('lora.targets=["attn"]', "lora.targets.0 = 'attn'"),
        ("data.demo=x", "data.demo = "),
    ],
)
def test_a_bad_setting(mistake: Mistake, override: str, message: str) -> None:
    assert message in mistake("classification", None, override)


def test_updates_of_a_layer_that_the_base_lacks(mistake: Mistake, random_run: Path) -> None:
    told = mistake("classification", None, "lora.rank=2", 'lora.targets=["attn.q","mlp.gate"]')
    assert f"lora.targets has 'mlp.gate', and the model of {random_run} has no such layer" in told
    assert "the layers are attn.q, attn.k, attn.v, attn.proj, mlp.up, mlp.down\n" in told


def test_a_tokenizer_that_is_not_the_base_s(mistake: Mistake, random_run: Path, tmp_path: Path) -> None:
    import shutil

    base = Path(shutil.copytree(random_run, tmp_path / "base"))
    settings = next((base / "tokenizer").glob("*settings.json"))
    settings.write_text(settings.read_text().replace("<|endoftext|>", "<|end|>"))
    assert re.search(r"tokenizer' is tokenizer \w{12}, but .* was trained with \w{12}", mistake(
        "classification", None, f"base={base}"))  # fmt: skip


def test_a_run_folder_of_something_else(random_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a pretraining, or of another task."""
    rows = [GOOD["classification"], OTHER["classification"]] * 2
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "task.toml").touch()
    command = ["finetune", str(tmp_path / "task.toml"), f"base={random_run}", f"data.path={tmp_path}",
               "task.kind=classification", "data.validation_fraction=0.0", *QUICK]  # fmt: skip
    assert main([*command, f"run_dir={random_run}"]) == MISTAKE
    assert f"run_dir = '{random_run}' holds checkpoints of a pretraining" in capsys.readouterr().err
    run = f"run_dir={tmp_path / 'run'}"
    assert main([*command, run]) == DONE
    capsys.readouterr()
    for override, name in (("lora.rank=2", "lora.rank = 2 now, 0"), ('task.labels=["x","y","z"]', "task.labels.2 = z"),
                           ("seed=3", "seed = 3 now, 1337")):  # fmt: skip
        assert main([*command, run, override, "training.steps=2"]) == MISTAKE
        assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "text,label\nba,x\nfe\n", "line 3: not 2 columns"),
        ("x.csv", b"text,label\nba,x\n\xff,y\n", "can't decode byte 0xff"),
        ("x.parquet", "no parquet", "cannot be read"),
        ("x.txt", "ba", "has a format that is not known here"),
        ("x.jsonl", b'{"text": "\xff"}\n', "line 1: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_bad_file(mistake: Mistake, tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert message in mistake("classification", None, f"data.train={tmp_path / name}")


def test_predict_wants_a_fine_tuned_model_and_one_input(random_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([str(random_run), "--text", "ba"], "is a pretrained model"),
        ([str(random_run)], "predict takes a file or the options of one row"),
        ([str(random_run), "x.jsonl", "--text", "ba"], "predict takes a file or the options of one row"),
        (["/nowhere", "--text", "ba"], "is neither a checkpoint nor a run folder"),
        ([str(random_run), "x.jsonl", "--output", __file__], "exists\n  rule: results go to a new file"),
    ):
        assert main(["predict", *arguments]) == MISTAKE
        assert message in capsys.readouterr().err


def test_a_best_result_that_is_never_measured(mistake: Mistake) -> None:
    told = mistake("generation", None, "best.metric=rouge_l", "training.eval_generations=0")
    assert "best.metric = 'rouge_l' with training.eval_generations = 0" in told


def test_updates_go_on_from_no_other_base(random_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.jsonl").write_text("\n".join([json.dumps(GOOD["generation"])] * 2), encoding="utf-8")
    (tmp_path / "task.toml").touch()

    def run(name: str, base: Path, *more: str) -> int:
        settings = [f"base={base}", f"data.path={tmp_path}", f"run_dir={tmp_path / name}", "data.packing=false",
                    "data.validation_fraction=0.0", *QUICK]  # fmt: skip
        return main(["finetune", str(tmp_path / "task.toml"), *settings, *more])

    assert run("other", random_run) == DONE
    assert run("run", random_run, "lora.rank=2") == DONE
    capsys.readouterr()
    assert run("run", tmp_path / "other", "lora.rank=2", "training.steps=2") == MISTAKE
    assert re.search(r"base = '.*other.*' now, '.*' in the checkpoints of ", capsys.readouterr().err)
