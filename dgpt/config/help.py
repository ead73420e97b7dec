"""The settings as text for `--help`: one line of name and default, and its description below."""

import json
from collections.abc import Iterator

from pydantic_core import to_jsonable_python

from dgpt.config.run import RunConfig
from dgpt.config.section import Section, section_of


def settings_help(kind: type[Section] = RunConfig) -> str:
    """Every setting of a kind of run, and of the tables in it, with its default and unit."""
    return "\n".join(_lines(kind, ""))


def _lines(model: type[Section], prefix: str) -> Iterator[str]:
    """The settings of a table, then those of the tables in it."""
    sections = {name: section for name, field in model.model_fields.items() if (section := section_of(field))}
    for name, field in model.model_fields.items():
        if field.annotation is not sections.get(name):
            default = to_jsonable_python(field.default)
            yield f"  {prefix}{name} = {json.dumps(default, ensure_ascii=False)}"
            yield f"      {field.description}"
    for name, section in sections.items():
        one = model.model_fields[name].annotation is section
        yield f"\n[{prefix}{name}]" if one else f"\n[[{prefix}{name}]]"  # a list of tables repeats its header
        yield from _lines(section, f"{prefix}{name}." if one else "")
