"""TOML file and `section.key=value` overrides in, settings out. Precedence: defaults < file < command line."""

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dgpt.config.finetune import FinetuneConfig
from dgpt.config.run import LoopConfig, RunConfig
from dgpt.config.section import section_of
from dgpt.errors import UserError

Config = TypeVar("Config", RunConfig, FinetuneConfig)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """`load_settings` of a pretraining."""
    return load_settings(RunConfig, path, overrides)


def load_settings(kind: type[Config], path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a run from `path` (None: defaults alone) and apply overrides such as `optimizer.lr=3e-4`.

    Raises UserError that lists every mistake at once.
    """
    values = _read_toml(Path(path)) if path else {}
    for override in overrides:
        _apply(values, override)
    return parse_settings(kind, values, str(path or "the command line"))


def parse_config(values: dict[str, Any], origin: str) -> RunConfig:
    """`parse_settings` of a pretraining."""
    return parse_settings(RunConfig, values, origin)


def parse_settings(kind: type[Config], values: dict[str, Any], origin: str) -> Config:
    """Validate a nested dict (from TOML or JSON) as settings of `kind`; `origin` names it in errors."""
    try:
        return kind.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        problems = [line for detail in error.errors() for line in _explain(detail, kind).splitlines()]
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(
            f"{origin}: {len(problems)} setting{'s' * (len(problems) > 1)} cannot be used:{lines}",
            rule=f"the settings that `dgpt {kind.verb} --help` lists, with their types and bounds",
            fix=f"change the values above in the file, or override them: dgpt {kind.verb} FILE section.key=value",
        ) from None


def to_toml(config: LoopConfig) -> str:
    """The whole config as TOML, which `load_config` reads back to an equal config."""
    values = config.model_dump(mode="json")
    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    lines = [f"{name} = {_literal(value)}" for name, value in values.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_literal(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)} = {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which TOML wants escaped


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"config file '{path}' does not exist", rule="the first argument is a TOML file of a run",
                        fix="give the path of one, for example configs/pretrain/demo.toml") from None  # fmt: skip
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"config file '{path}' cannot be read: {error}", rule="a run is a UTF-8 TOML file (toml.io)",
                        fix="correct the place that the message names") from None  # fmt: skip


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, leaf = key.strip().split(".")
    table: Any = values
    for parent in parents:
        table = table.setdefault(parent, {}) if isinstance(table, dict) else None
    if not equals or not leaf or not isinstance(table, dict):
        raise UserError(f"override '{override}' is not a setting", rule="an override is section.key=value",
                        fix="write for example optimizer.lr=3e-4 or run_dir=runs/mine")  # fmt: skip
    table[leaf] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    """A TOML literal; anything else is a plain string, so that run_dir=runs/mine needs no quotes within quotes."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text  # text of several lines is no literal


def _explain(detail: ErrorDetails, kind: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        return f"{path} = {detail['input']!r}: no such setting{_did_you_mean(detail['loc'], kind)}"
    if detail["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path} = {detail['input']!r}: {message[0].lower()}{message[1:]}"


def _did_you_mean(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    for part in loc[:-1]:
        if field := model.model_fields.get(str(part)):
            model = section_of(field) or model
    close = difflib.get_close_matches(str(loc[-1]), model.model_fields, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(model.model_fields)}"


def flat(values: object, prefix: str = "") -> dict[str, object]:
    """A nested config as dotted names."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if items is None:
        return {prefix: values}
    dotted = ((f"{prefix}.{key}" if prefix else str(key), value) for key, value in items)
    return {name: leaf for path, value in dotted for name, leaf in flat(value, path).items()}
