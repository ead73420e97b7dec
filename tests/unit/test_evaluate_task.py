"""`dgpt evaluate` of a fine-tuned model: its task's measures."""

import json
from pathlib import Path

import pytest

from dgpt.cli import main
from dgpt.finetuned import load_finetuned
from dgpt.outcome import DONE, MISTAKE
from dgpt.tasks.evaluate import evaluate_task
from dgpt.train.rows import read_rows as read_metrics

ROWS = [{"text": f"ba fe {n}", "label": "even" if n % 2 == 0 else "odd"} for n in range(24)]


@pytest.fixture(scope="module")
def finetuned(random_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    for name, rows in (("train", ROWS[:16]), ("validation", ROWS[16:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "task.toml").write_text(f"""
run_dir = "{folder / "run"}"
base = "{random_run}"
task = {{ kind = "classification" }}
data = {{ train = "{folder / "train.jsonl"}", validation = "{folder / "validation.jsonl"}" }}
training = {{ steps = 2, global_batch_size = 4, micro_batch_size = 4 }}
""")
    assert main(["finetune", str(folder / "task.toml")]) == DONE
    return folder


def test_measures_are_those_of_the_task(finetuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(finetuned / "run"), "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    model = load_finetuned(finetuned / "run")
    expected = evaluate_task(model, ROWS[16:])
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    answers = list(model.answers([model.task.query(row) for row in _rows(finetuned)]))
    right = [answer["label"] == row["label"] for answer, row in zip(answers, ROWS[16:], strict=True)]
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))
    assert (found["task"], found["rows"]) == ("classification", 8)


def _rows(folder: Path) -> list:  # type: ignore[type-arg]
    from dgpt.tasks.rows import read_rows

    return list(read_rows(folder / "validation.jsonl"))


def test_another_file_and_a_part_of_it(finetuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(finetuned / "run"), str(finetuned / "train.jsonl"), "--limit", "3", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["rows"] == 3


def test_the_loss_is_the_run_s_own_where_classes_are_weighed(finetuned: Path, tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(json.dumps(row) for n, row in enumerate(ROWS) if n % 2 == 0 or n % 8 == 1))
    settings = [f'data.train="{train}"', 'task.class_weights="balanced"', f'run_dir="{tmp_path / "run"}"',
                "training.steps=4", "training.eval_every_steps=4", 'precision.dtype="fp32"', "optimizer.lr=1e-2",
                "training.micro_batch_size=2"]  # fmt: skip
    assert main(["finetune", str(finetuned / "task.toml"), *settings]) == DONE
    (told,) = [row["loss/validation"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")
               if "loss/validation" in row]  # fmt: skip
    model = load_finetuned(tmp_path / "run")
    assert evaluate_task(model, ROWS[16:])["loss"] == pytest.approx(told, rel=1e-5)


def test_wishes_that_a_task_does_not_grant(finetuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in ((["--nproc", "2"], "one process answers all rows"), (["--text"], "--text without DATA"),
                             (["--stride", "8"], "--stride = 8 for the task of a fine-tuned model")):  # fmt: skip
        assert main(["evaluate", str(finetuned / "run"), *options]) == MISTAKE
        assert message in capsys.readouterr().err


def test_rows_that_are_left_out_are_told(finetuned: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """At the start of a run, and in an evaluation."""
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("\n".join(map(json.dumps, [*ROWS[:3], {"text": "ba " * 99, "label": "odd"}])))
    settings = [f'data.validation="{held_out}"', 'data.over_long="skip"', f'run_dir="{tmp_path / "run"}"']
    capsys.readouterr()
    assert main(["finetune", str(finetuned / "task.toml"), *settings]) == DONE
    assert "left out 1 held-out examples above 96 tokens" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == DONE
    output, errors = capsys.readouterr()
    assert json.loads(output)["rows"] == 3
    assert "left out 1 rows above 96 tokens" in errors


def test_a_picture_that_cannot_be_written_costs_no_run(
    finetuned: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run" / "confusion_matrix.png").mkdir(parents=True)
    assert main(["finetune", str(finetuned / "task.toml"), f'run_dir="{tmp_path / "run"}"']) == DONE
    assert "PICTURE NOT WRITTEN" in capsys.readouterr().out
