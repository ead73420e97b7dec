"""The settings as text for `--help`: one line of name, type and default, and its description below."""

import json
from collections.abc import Iterator

from pydantic import BaseModel

from dgpt.config.run import RunConfig


def settings_help() -> str:
    """Every setting of RunConfig with its default and unit."""
    return "\n".join(_lines(RunConfig, ""))


def _lines(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield f"\n[{name}]"
            yield from _lines(section, f"{name}.")
        else:
            default = model().model_dump(mode="json", exclude_defaults=False)[name]
            yield f"  {prefix}{name} = {json.dumps(default, ensure_ascii=False)}"
            yield f"      {field.description}"
