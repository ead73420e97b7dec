"""`dgpt generate` and `dgpt chat` from the command line."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dgpt.chat import Chat, converse
from dgpt.cli import main
from dgpt.data.chat import encode, segments
from dgpt.errors import UserError
from dgpt.generate import load_model
from dgpt.model.generate import generate_texts, stream_text
from dgpt.model.sampling import Sampling
from dgpt.outcome import DONE, MISTAKE

OPTIONS = ("--max-new-tokens", "9", "--seed", "4", "--min-p", "0.01", "--repetition-penalty", "1.1")
SAMPLING = Sampling(max_new_tokens=9, temperature=0.8, seed=4, min_p=0.01, repetition_penalty=1.1)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_stream_prints_what_the_whole_prints(random_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for more in ((), ("--stream",)):
        assert run("generate", random_run, "ba fe", "日本", *OPTIONS, "--samples", 2, *more) == DONE
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].count("ba fe") == printed[0].count("日本") == 2


def test_jsonl_in_and_out(random_run: Path, tmp_path: Path) -> None:
    rows = [{"id": 7, "question": "ba fe\nx"}, {"question": ""}, {"question": "日本", "more": [1, None]}]
    source, target = tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl"
    source.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    files = ("--prompts-file", source, "--field", "question", "--output", target)
    assert run("generate", random_run, *files, *OPTIONS, "--samples", 2, "--batch-size", 3) == DONE
    written = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    model, tokenizer = load_model(random_run)
    texts = generate_texts(model, tokenizer, [str(row["question"]) for row in rows], SAMPLING, samples=2)
    twice = [row | {"sample": number} for row in rows for number in range(2)]
    expected = [row | {"completion": t.text, "reason": t.reason} for row, t in zip(twice, texts, strict=True)]
    assert written == expected
    assert run("generate", random_run, *files) == MISTAKE  # there it is


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
        (b'\n{"text": "a"}\n', "line 2: no text in field 'prompt'"),
        (b'{"prompt": 3}', "line 1: no text in field 'prompt'"),
        (b'{"prompt": "\\ud800"}', "line 1: field 'prompt' holds half of a surrogate pair"),
        (b'{"prompt": "a"}\n\n{"prompt": "\xff"}', "line 3: byte 29 is not valid UTF-8"),
    ],
)
def test_a_bad_line_is_named(
    random_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    assert run("generate", random_run, "--prompts-file", tmp_path / "in.jsonl") == MISTAKE
    assert f"file '{tmp_path / 'in.jsonl'}', {message}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def make(random_run: Path) -> Callable[..., Chat]:
    model, tokenizer = load_model(random_run)
    return lambda **settings: Chat(model, tokenizer, Sampling(max_new_tokens=4, seed=1), **settings)


def talk(chat: Chat, text: str) -> tuple[str, str]:
    target, notes = io.StringIO(), io.StringIO()
    converse(chat, io.StringIO(text), target, notes)
    return target.getvalue(), notes.getvalue()


def test_an_answer_continues_the_template_of_the_conversation(make: Callable[..., Chat]) -> None:
    chat = make(system="Hi.")
    answers, _ = talk(chat, "ba\n\n fe \n")
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2
    asked = [*chat.messages[:2], {"role": "user", "content": "fe"}]
    prompt, _ = encode(segments([{"role": "system", "content": "Hi."}, *asked], answer=True), chat.tokenizer)
    assert "".join(stream_text(chat.model, chat.tokenizer, prompt, chat.sampling)) == chat.messages[3]["content"]
    assert answers == f"{chat.messages[1]['content']}\n{chat.messages[3]['content']}\n"


def test_reset_exit_and_unknown_commands(make: Callable[..., Chat]) -> None:
    chat = make()
    first, notes = talk(chat, "ba\n/reset\nba\n/what\n/exit\nfe\n")
    one, two = first[: len(first) // 2], first[len(first) // 2 :]
    assert one == two, "the second answer knows nothing of the first"
    assert len(chat.messages) == 2
    assert "(new conversation)" in notes
    assert "/what is no command" in notes


def test_a_full_context_drops_the_oldest_messages_and_says_so(make: Callable[..., Chat]) -> None:
    chat = make(system="ba.")
    _, notes = talk(chat, "ba fe ba\n" * 5)
    assert "context is full: 2 old messages were dropped" in notes
    assert chat.forgotten + len(chat.messages) == 10
    assert chat.system == [{"role": "system", "content": "ba."}]


@pytest.mark.parametrize(
    ("text", "message"),
    [("ba " * 99, "fit into the model's seq_len of 96"), ("<|assistant|>", "marker"), ("\udcff", "UTF-8")],
)
def test_a_message_that_cannot_be_answered_is_refused_and_the_talk_goes_on(
    make: Callable[..., Chat], text: str, message: str
) -> None:
    chat = make()
    answers, notes = talk(chat, f"{text}\nba\n")
    assert message in notes
    assert chat.messages[0]["content"] == "ba"
    assert answers


def test_a_stopped_answer_is_kept_as_far_as_it_was_read(make: Callable[..., Chat]) -> None:
    chat = make()
    answer = chat.ask("ba")
    piece = next(answer)
    answer.close()
    assert [m["content"] for m in chat.messages] == ["ba", piece]


def test_bad_instructions_are_refused(make: Callable[..., Chat]) -> None:
    with pytest.raises(UserError, match="marker"):
        make(system="<|user|>")


def test_chat_answers_a_pipe(
    random_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("ba\n\xff\n".encode("latin-1")), encoding="utf-8"))
    assert run("chat", random_run, "--max-new-tokens", 3) == DONE
    output, notes = capsys.readouterr()
    assert output.strip()
    assert "not valid UTF-8" in notes
