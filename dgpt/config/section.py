"""What all sections of a run's TOML file are: strict tables, with the rules that several of their settings share."""

from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

LARGEST = 2**53  # integers up to here are exact in every reader of JSON
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
NotNegative = Annotated[int, Field(ge=0, le=LARGEST)]
FolderName = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A table of the TOML file: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def check_text(cls, value: object) -> object:
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{value!r} holds a NUL character, which no path or text of a run may have; take it out")
        return value


def section_of(field: FieldInfo) -> type[Section] | None:
    """The table that a setting holds, or a list of; None for a plain value."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
