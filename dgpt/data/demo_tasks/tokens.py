"""Which kind of token comes next at this place of a program: a class that the order of what stands before decides.

A bag of words knows what a text is about, and is hard to beat where that is asked. Here it knows little.
"""

import io
import keyword
import tokenize
from collections.abc import Iterator

from dgpt.data.demo_tasks.example import Example, number_of
from dgpt.data.demo_tasks.functions import Function, functions

LINES = 6  # that end in the place, at most
ONE_OF = 3  # functions are looked at
EACH = 500  # examples of a kind, at most
PUNCTUATION = {
    "(": "opening bracket", "[": "opening bracket", "{": "opening bracket", ")": "closing bracket",
    "]": "closing bracket", "}": "closing bracket", ".": "punctuation", ",": "punctuation", ":": "punctuation",
}  # fmt: skip
KINDS = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.NEWLINE: "end of line"}
LABELS = ("name", "keyword", "operator", *sorted({*PUNCTUATION.values(), *KINDS.values()}))


def next_tokens() -> Iterator[Example]:
    """{"text", "label"}: the lines of a function up to some place, and the kind of the token that follows there."""
    for function in functions():
        if number_of(function.source) % ONE_OF == 0:
            for kind, text in sorted(_places(function).items()):
                yield Example(function.module, kind, EACH, text, {"text": text, "label": kind})


def _places(function: Function) -> dict[str, str]:
    """Text before one token of each kind, chosen without order."""
    lines = function.source.split("\n")
    chosen: dict[str, tuple[int, str]] = {}
    for token in tokenize.generate_tokens(io.StringIO(function.source).readline):
        kind, (row, column) = kind_of(token), token.start
        if kind and row > 1:
            text = "\n".join([*lines[max(0, row - LINES) : row - 1], lines[row - 1][:column]]).rstrip()
            chosen[kind] = min(chosen.get(kind, (1 << 64, "")), (number_of(text), text))
    return {kind: text for kind, (_, text) in chosen.items()}


def kind_of(token: tokenize.TokenInfo) -> str:
    """'' for what is no token of a program's text: comments, indentation, empty lines."""
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name"
    if token.type == tokenize.OP:
        return PUNCTUATION.get(token.string, "operator")
    return KINDS.get(token.type, "")
