"""Rows of task files, each with the place where it stands: JSONL, CSV, Parquet, or a `datasets` name."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpt.data.blocks import open_stream
from dgpt.data.prompts import is_unicode
from dgpt.data.readers import JSONL_SUFFIXES
from dgpt.errors import UserError

SUFFIXES = (*JSONL_SUFFIXES, ".csv", ".parquet")
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Row:
    """One row of a file."""

    place: str  # e.g. "file 'train.jsonl', line 3"
    values: dict[str, Any]

    def has(self, field: str) -> bool:
        return self.values.get(field) is not None

    def get(self, field: str, setting: str) -> Any:
        """What `field` holds. Raises UserError if the row does not have it. setting: that names the field."""
        if field in self.values and not self.has(field):
            raise self.refuse(f"field '{field}' is null, or a number without a class",
                              "every row has the fields of its task", "fill it, or leave the row out")  # fmt: skip
        if not self.has(field):
            raise UserError(f"{self.place}: no field '{field}'; it has {', '.join(self.values) or 'none'}",
                            rule="every row has the fields of its task",
                            fix=f"add it, or set data.fields.{setting} to the field that holds it")  # fmt: skip
        return self.values[field]

    def text(self, field: str, setting: str, *, empty: bool = False) -> str:
        """The text in `field`. Raises UserError if it is no text, or without any character unless `empty` may be."""
        value = self.get(field, setting)
        if not isinstance(value, str):
            raise self.refuse(f"field '{field}' holds {_shown(value)}", "the field holds text", "write a string there")
        if not value.strip() and not empty:
            raise self.refuse(f"field '{field}' is empty", "an example has some text", "fill it, or leave the row out")
        self.check_unicode(field, value)
        return value

    def check_unicode(self, field: str, text: str) -> None:
        """Raises UserError where `text`, of `field`, cannot be written again."""
        if not is_unicode(text):
            raise self.refuse(f"field '{field}' is not valid Unicode: half of a character", "text is Unicode",
                              "write the other half as well, or leave it out")  # fmt: skip

    def nested(self, field: str, setting: str) -> Any:
        """A list or a table in `field`; a CSV file writes it as JSON. Raises UserError if it is missing or no JSON."""
        value = self.get(field, setting)
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise self.refuse(f"field '{field}' holds {_shown(value)}: {error}",
                              "the field holds a list or a table, in CSV as JSON", "correct it") from None  # fmt: skip

    def refuse(self, what: str, rule: str, fix: str) -> UserError:
        """The mistake `what` at the place of this row."""
        return UserError(f"{self.place}: {what}", rule=rule, fix=fix)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, in order. Raises UserError where it is missing, of unknown format or damaged."""
    if not path.is_file():
        raise UserError(f"file '{path}' does not exist", rule=f"examples are in a file of {', '.join(SUFFIXES)}",
                        fix="correct data.train, data.validation or data.path; data.demo=... makes some")  # fmt: skip
    suffix = Path(path.stem).suffix if path.suffix in (".gz", ".zst") else path.suffix
    if suffix in JSONL_SUFFIXES:
        yield from _jsonl(path)
    elif suffix == ".csv":
        yield from _csv(path)
    elif suffix == ".parquet" == path.suffix:
        yield from _parquet(path)
    else:
        raise UserError(f"file '{path}' has a format that is not known here",
                        rule=f"known are {', '.join(SUFFIXES)}; JSONL and CSV also as .gz and .zst",
                        fix="rename or convert it")  # fmt: skip


def _jsonl(path: Path) -> Iterator[Row]:
    with open_stream(path) as (stream, _):
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = f"file '{path}', line {number}"
            try:
                values = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
            except (ValueError, RecursionError) as error:  # a UnicodeDecodeError as well
                raise UserError(f"{place}: {error}: {line[:80].decode('utf-8', 'replace').strip()}",
                                rule="each line is a JSON object in UTF-8",
                                fix="correct the line") from None  # fmt: skip
            if not isinstance(values, dict):
                raise UserError(f"{place}: {_shown(values)} is no JSON object",
                                rule="each line is a JSON object in UTF-8", fix="correct the line")  # fmt: skip
            yield Row(place, values)


def _csv(path: Path) -> Iterator[Row]:
    with open_stream(path) as (stream, _):
        lines = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
        try:
            for values in lines:
                place = f"file '{path}', line {lines.line_num}"
                if None in values or None in values.values():
                    raise UserError(f"{place}: not {len(lines.fieldnames or ())} columns, as the first line has",
                                    rule="a CSV file has a line of names, and all lines have as many columns",
                                    fix="correct the line; text with commas or newlines stands in quotes")  # fmt: skip
                yield Row(place, dict(values))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"file '{path}', line {lines.line_num}: {error}", rule="a CSV file is UTF-8 (RFC 4180)",
                            fix="correct the line, or convert the file to JSONL") from None  # fmt: skip


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(ROWS_AT_ONCE))
            rows = (row for batch in batches for row in batch)
            for number, values in enumerate(rows, start=1):
                yield Row(f"file '{path}', row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"file '{path}' cannot be read: {error}", rule="a .parquet file is a whole Parquet file",
                        fix="copy it again") from None  # fmt: skip


def read_dataset(name: str, config: str, split: str) -> Iterator[Row]:
    """The rows of a split. Raises UserError where it cannot be loaded."""
    import datasets

    try:
        rows = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # `datasets` raises errors of many libraries
        raise UserError(f"data.dataset = '{name}', split '{split}' cannot be loaded: {type(error).__name__}: {error}",
                        rule="the name, configuration and split exist, here or on the hub",
                        fix="correct them; without a network, give files as data.train") from None  # fmt: skip
    for number, values in enumerate(rows):
        named = {field: _with_names(value, rows.features[field]) for field, value in values.items()}
        yield Row(f"dataset '{name}', split '{split}', row {number}", named)


def _with_names(value: Any, feature: Any) -> Any:
    """Numbers of a ClassLabel, also in lists, as the names that they stand for; None for -1, which stands for none."""
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if value in range(feature.num_classes) else None
    if isinstance(value, list) and hasattr(feature, "feature"):
        return [_with_names(item, feature.feature) for item in value]
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
