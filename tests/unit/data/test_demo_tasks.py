"""The demo examples: their format, the same every time, exact spans, no leak into validation, equal classes."""

import ast
import importlib
import inspect
import json
import keyword
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dgpt.cli import main
from dgpt.data.demo_tasks import KINDS, Example, split, write_demo
from dgpt.data.demo_tasks.example import held_out
from dgpt.data.demo_tasks.functions import functions
from dgpt.data.demo_tasks.tokens import LABELS
from dgpt.errors import UserError
from dgpt.outcome import MISTAKE


@cache
def candidates(kind: str) -> list[Example]:
    return list(KINDS[kind]())


@cache
def made(kind: str) -> tuple[list[Example], list[Example]]:
    """Training and validation examples."""
    return split(candidates(kind))


def rows(kind: str) -> list[dict[str, Any]]:
    return [example.row for part in made(kind) for example in part]


def answered() -> list[tuple[str, str, str, int]]:
    """Question, context, first answer and where it starts."""
    return [(r["question"], r["context"], r["answers"]["text"][0], r["answers"]["answer_start"][0])
            for r in rows("extractive_qa") if r["answers"]["text"]]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_validation_has_modules_and_texts_of_its_own(kind: str) -> None:
    train, validation = made(kind)
    assert not {e.module for e in train} & {e.module for e in validation}
    texts = [example.text for example in train + validation]
    assert len(set(texts)) == len(texts)
    assert 0.12 < len(validation) / len(texts) < 0.3
    assert len(train) >= 1000


def test_files_are_the_same_every_time(tmp_path: Path) -> None:
    write_demo("chat", tmp_path / "a")
    write_demo("chat", tmp_path / "b")
    names = {"train.jsonl", "validation.jsonl"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    lines = (tmp_path / "a/train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [example.row for example in made("chat")[0]]


def test_a_kind_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kind 'poems'"):
        write_demo("poems", tmp_path)


def test_finetune_makes_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[3] / "configs/finetune/generate_demo.toml"
    command = ["finetune", str(path), f"data.path={tmp_path}", f"base={tmp_path}/none", f"run_dir={tmp_path}/run"]
    (tmp_path / "train.jsonl").write_text("half")
    assert main(command) == MISTAKE  # there is no base
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [example.row for example in made("generation")[0]]
    assert capsys.readouterr().out.count("making the demo examples") == 1
    assert main(command) == MISTAKE
    assert "making" not in capsys.readouterr().out


def test_classes_are_equally_large() -> None:
    for part in made("classification"):
        sizes = Counter(example.row["label"] for example in part)
        assert set(sizes) == set(LABELS)
        assert min(sizes.values()) >= 0.8 * max(sizes.values())


def test_the_label_is_that_of_what_follows_in_the_source() -> None:
    """Found again in the files as text, and judged by its first characters."""
    sources = [function.source for function in functions()]
    for row in rows("classification")[:200]:
        rests = [source.split(row["text"], 1)[1] for source in sources if row["text"] in source]
        assert any(row["label"] in (label_of(rest), "end of line" * ends_line(rest)) for rest in rests)


def ends_line(rest: str) -> bool:
    return re.match(r" *(#|;|\n|$)", rest) is not None


def label_of(rest: str) -> str:
    found = re.match(r"""(?:\s|\\\n|\#.*)*(?:
        (?P<string>(?i:[rbuf]{0,2})["'])|(?P<number>\.?\d)|(?P<word>\w+)|(?P<opening>[(\[{])|(?P<closing>[)\]}])
        |(?P<operator>\.\.\.|:=)|(?P<punctuation>[.,:]))""", rest, re.VERBOSE)  # fmt: skip
    group = found.lastgroup if found else "operator"
    if group == "word":
        return "keyword" if keyword.iskeyword(found["word"]) else "name"
    return f"{group} bracket" if group in ("opening", "closing") else group


def test_conversations_and_prompts_say_what_the_docstring_says() -> None:
    summaries = {function.summary for function in functions()}
    assert {row["completion"] for row in rows("generation")} <= summaries
    for row in rows("chat"):
        assert row["messages"][2]["content"] in summaries
        roles = [message["role"] for message in row["messages"]]
        assert roles in (["system", "user", "assistant"], ["system", "user", "assistant", "user", "assistant"])
        assert all(message["content"].strip() for message in row["messages"])


def test_a_known_function() -> None:
    row = next(r for r in all_of("generation") if r["prompt"].startswith("# textwrap\ndef shorten("))
    assert row["prompt"] == "# textwrap\ndef shorten(text, width, **kwargs)\n"
    assert row["completion"] == "Collapse and truncate the given text to fit in the given width."
    names = next(r for r in all_of("chat") if "textwrap" in r["messages"][1]["content"]
                 and "def shorten" in r["messages"][-2]["content"])  # fmt: skip
    assert names["messages"][-1]["content"] == "It takes text, width and kwargs."


def all_of(kind: str) -> list[dict[str, Any]]:
    return [example.row for example in candidates(kind)]


def test_spans_are_exact_and_some_questions_have_no_answer() -> None:
    found = rows("extractive_qa")
    assert len({row["id"] for row in found}) == len(found)
    for row in found:
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        assert [row["context"][start : start + len(text)] for text, start in zip(texts, starts, strict=True)] == texts
    without = sum(not row["answers"]["text"] for row in found)
    assert 0.15 < without / len(found) < 0.25


@pytest.mark.parametrize(("question", "before"), [
    ("Which exception does .* raise", r"raise "), ("What does .* return", r"return *"),
    ("Which exception does .* catch", r"except \(?"), ("In which class", r"^class "),
    ("What is assigned to", r"= *"), ("What does the loop of", r"in *"), (r"What is [\w.]+ for\?", r"[\"'rR\s]"),
    ("What is the default of", r"= *"),
])  # fmt: skip
def test_an_answer_stands_where_its_question_says(question: str, before: str) -> None:
    found = [row for row in answered() if re.match(question, row[0])]
    assert len(found) > 100
    wrong = [row for row in found if not re.search(rf"{before}[(\\\s]*$", row[1][: row[3]])]
    assert not wrong


def test_defaults_are_those_that_inspect_reports() -> None:
    """Of modules that are safe to import."""
    asked = r"(textwrap|shlex|bisect|fractions):\d+: What is the default of parameter (\w+) of ([\w.]+)\?"
    found = [(match, row) for row in all_of("extractive_qa") if (match := re.fullmatch(asked, row["id"]))]
    assert len(found) > 20
    for match, row in found:
        module, name, function = match.groups()
        default = signature_of(module, function).parameters[name].default
        texts = row["answers"]["text"]
        assert (default is inspect.Parameter.empty) == (not texts)
        assert not texts or eval_constant(texts[0], default) == default


def signature_of(module: str, name: str) -> inspect.Signature:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = vars(found)[part]
    return inspect.signature(found.__func__ if isinstance(found, classmethod | staticmethod) else found)


def eval_constant(text: str, default: Any) -> Any:
    try:
        return ast.literal_eval(text)
    except ValueError:  # a name
        return default


def test_a_module_with_most_of_the_examples_is_not_held_out() -> None:
    modules = ["large"] * 80 + [f"m{n}" for n in range(20)]
    assert "large" not in held_out(modules)
    assert len(held_out(modules)) == 20
