"""`dgpt predict`: how a model is asked, and rows that cannot be written back."""

import json
from pathlib import Path
from typing import Any

import pytest

from dgpt.cli import main
from dgpt.finetuned import load_finetuned
from dgpt.outcome import DONE, MISTAKE
from dgpt.predict import one_row

TALK = [{"role": "user", "content": "ba"}, {"role": "assistant", "content": "fe"}]
ROWS: dict[str, dict[str, Any]] = {"chat": {"messages": TALK}, "plain": {"prompt": "ba", "completion": " fe"}}


@pytest.fixture(scope="module")
def writers(random_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `chat` and `plain`."""
    folder = tmp_path_factory.mktemp("writers")
    (folder / "task.toml").touch()
    for name, row in ROWS.items():
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
        settings = [f"base={random_run}", f"data.train={folder / name}.jsonl", f"run_dir={folder / name}",
                    "training.steps=1", "training.global_batch_size=1", "training.micro_batch_size=1",
                    "task.max_new_tokens=4", "logging.tensorboard=false"]  # fmt: skip
        assert main(["finetune", str(folder / "task.toml"), *settings]) == DONE
    return folder


def test_only_a_model_of_conversations_is_asked_in_the_chat_template(
    writers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, asked in (("chat", "<|user|>\nba\n<|assistant|>\n"), ("plain", "ba")):
        model = load_finetuned(writers / name)
        assert model.config.task.chat == (name == "chat")
        query = model.task.query(one_row(model, {"text": "ba", "context": None}))
        assert query == model.tokenizer.encode(asked)
        capsys.readouterr()
        assert main(["predict", str(writers / name), "--text", "ba"]) == DONE
        assert "completion" in json.loads(capsys.readouterr().out)["prediction"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "ba", "note": {"by": "\\ud800"}}', "field 'note' is not valid Unicode: half of a character"),
        ('{"prompt": "ba", "prediction": 7}', "it has a field 'prediction' already"),
    ],
)
def test_a_row_that_cannot_be_written_with_its_answer(
    writers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    rows, output = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    rows.write_text(f'{{"prompt": "ba"}}\n{line}\n')
    capsys.readouterr()
    assert main(["predict", str(writers / "plain"), str(rows), "--output", str(output)]) == MISTAKE
    assert f"file '{rows}', line 2: {message}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [rows]
