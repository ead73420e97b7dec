"""Prompts of a file: one a line, or JSONL with the prompt in a field (.gz and .zst too)."""

import json
from pathlib import Path
from typing import Any

from dgpt.data.blocks import open_stream
from dgpt.data.readers import JSONL_SUFFIXES, file_format
from dgpt.errors import UserError

Row = dict[str, Any]


def read_prompts(path: Path, field: str) -> list[Row]:
    """A row for each prompt, which is text in its `field`; what else a JSON object holds is kept.

    Raises UserError that names file and line for a file that cannot be read, or a line without such a text.
    """
    if not path.is_file():
        raise UserError(f"--prompts-file = '{path}' cannot be read: it is no file", rule="prompts are in a UTF-8 file",
                        fix="correct the path")  # fmt: skip
    with open_stream(path) as (stream, _):
        data = stream.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refuse(path, line, f"byte {error.start} is not valid UTF-8", field) from None
    if file_format(path) not in JSONL_SUFFIXES:
        return [{field: line} for line in text.splitlines()]
    lines = enumerate(text.split("\n"), start=1)
    return [_row(path, number, line, field) for number, line in lines if line.strip()]


def _row(path: Path, number: int, line: str, field: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _refuse(path, number, f"not JSON: {error}", field) from None
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        raise _refuse(path, number, f"no text in field '{field}': {line[:80]}", field)
    if not is_unicode(row[field]):
        raise _refuse(path, number, f"field '{field}' holds half of a surrogate pair", field)
    return row


def is_unicode(text: str) -> bool:
    r"""JSON (`\ud800`) and Python's command line (bytes that are no UTF-8) can give lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _refuse(path: Path, line: int, what: str, field: str) -> UserError:
    return UserError(f"file '{path}', line {line}: {what}",
                     rule=f"UTF-8; in .jsonl each line is a JSON object with the prompt as text in field '{field}', "
                          "in any other file each line is a prompt",
                     fix="correct the line, or give the field of the prompt with --field")  # fmt: skip
