"""An example, where it comes from, and which are held out."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

HELD_OUT = 0.2  # of the examples, by whole modules


@dataclass(frozen=True)
class Example:
    """A row of a task file."""

    module: str  # of the standard library: decides between training and validation
    group: str  # a class, or a kind of question: the groups are made equally large
    limit: int  # examples of the group, at most, training and validation together
    text: str  # what a model sees of it: no two examples have the same
    row: dict[str, Any]


def number_of(text: str) -> int:
    """A number from the text alone, the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def held_out(modules: Iterable[str]) -> set[str]:
    """Modules for validation, with about HELD_OUT of the examples, given the module of each example.

    One that would fill more than that by half stays in training.
    """
    sizes = Counter(modules)
    wanted = HELD_OUT * sizes.total()
    chosen: set[str] = set()
    size = 0
    for module in sorted(sizes, key=number_of):
        if size < wanted and size + sizes[module] <= 1.5 * wanted:
            chosen.add(module)
            size += sizes[module]
    return chosen
