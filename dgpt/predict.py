"""`dgpt predict`: a fine-tuned model over a file of rows, or over one row from the command line."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from dgpt.errors import UserError
from dgpt.progress import count_bar
from dgpt.tasks.evaluate import Finetuned
from dgpt.tasks.rows import Row

PREDICTION = "prediction"  # field of the answers


def predict(model: Finetuned, rows: Sequence[Row], output: Path | None, batch_size: int) -> None:
    """Write each row with its answer in `prediction`, as JSON lines, to `output` or to standard output.

    Raises UserError for a bad row before anything is asked; `output` appears when it is whole.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size = {batch_size} cannot be used", rule="a batch has a row or more",
                        fix="set it to 1 or more")  # fmt: skip
    for row in rows:
        _check_written(row)
    queries = [model.task.query(row) for row in rows]
    if model.task.cut:
        print(f"cut {model.task.cut} rows, which are longer than the model reads", file=sys.stderr, flush=True)
    answers = model.answers(queries, batch_size)
    with _opened(output) as file, count_bar("answer", len(rows), enabled=output is not None) as advance:
        for row, answer in zip(rows, answers, strict=True):
            file.write(f"{_line({**row.values, PREDICTION: answer})}\n")
            advance(1)


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, default=str)


def _check_written(row: Row) -> None:
    """Raises UserError for a row that could not be written with its answer."""
    if PREDICTION in row.values:
        raise row.refuse(f"it has a field '{PREDICTION}' already", "the answer is written into this field",
                         "rename the field, or leave it out")  # fmt: skip
    for field, value in row.values.items():
        row.check_unicode(field, _line({field: value}))


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise UserError(f"--output = '{path}' cannot be written: {error.strerror}",
                        rule="the answers go to a file in an existing folder", fix="give another path",
                        ) from None  # fmt: skip


def one_row(model: Finetuned, given: dict[str, str | None]) -> Row:
    """The row that options of the command line make up. Raises UserError if they are not those of the task."""
    fields, kind = model.config.data.fields, model.config.task.kind
    wanted: dict[str, Any] = {
        "classification": {"text": fields.text, "text_pair": fields.text_pair},
        "generation": {"text": fields.prompt},
    }.get(kind, {"context": fields.context, "question": fields.question})
    needed = [name for name in wanted if name != "text_pair"]
    present = {name for name, value in given.items() if value is not None}
    if not set(needed) <= present <= set(wanted):
        options = " ".join(f"--{name.replace('_', '-')}" for name in needed)
        raise UserError(f"given: {', '.join(sorted(present))}", rule=f"a model for {kind} is asked with {options}",
                        fix=f"give {options}, or a file of rows")  # fmt: skip
    if model.config.task.chat:
        return Row("the command line", {fields.messages: [{"role": "user", "content": given["text"]}]})
    return Row("the command line", {wanted[name]: given[name] for name in wanted if given[name] is not None})
