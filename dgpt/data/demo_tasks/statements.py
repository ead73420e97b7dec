"""Which kind of statement follows these lines: a class that depends on their order and on what the last ones say.

Words alone tell little of it, unlike the topic of a text, which a bag of words finds as well as any model.
"""

import ast
from collections.abc import Iterator

from dgpt.data.demo_tasks.example import Example
from dgpt.data.demo_tasks.functions import Function, functions

FEWEST, LINES = 2, 8  # before the statement
EACH = 500  # examples of a kind, at most
KINDS: dict[type[ast.stmt], str] = {
    ast.Assign: "assignment", ast.AugAssign: "update", ast.If: "if", ast.For: "loop", ast.While: "loop",
    ast.AsyncFor: "loop", ast.Try: "try", ast.Raise: "raise", ast.Return: "return",
}  # fmt: skip


def next_statements() -> Iterator[Example]:
    """{"text", "label"}: lines of a function, and the kind of the statement that comes after them."""
    for function in functions():
        lines = function.source.split("\n")
        for statement in ast.walk(function.node):
            kind = kind_of(statement)
            if kind and isinstance(statement, ast.stmt) and starts_its_line(statement, function, lines):
                at = statement.lineno - function.node.lineno
                if at < FEWEST:
                    continue
                text = "\n".join(lines[max(0, at - LINES) : at]) + "\n"
                yield Example(function.module, kind, EACH, text, {"text": text, "label": kind})


def kind_of(statement: ast.AST) -> str:
    """'' for what is no statement, or none of the kinds."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call | ast.Await):
        return "call"
    return next((name for kind, name in KINDS.items() if isinstance(statement, kind)), "")


def starts_its_line(statement: ast.stmt, function: Function, lines: list[str]) -> bool:
    """Unlike the `return` of `if done: return`."""
    line = lines[statement.lineno - function.node.lineno]
    return not line[: statement.col_offset - function.node.col_offset].strip()
