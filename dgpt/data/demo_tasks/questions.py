"""Questions on a function whose answer stands in its source, or does not: rows as in SQuAD 2.0 (arXiv:1806.03822)."""

import ast
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dgpt.data.demo_tasks.example import Example
from dgpt.data.demo_tasks.functions import Definition, Function, functions

SHORTEST, LONGEST = 80, 1000  # characters of a context: the long ones are above 256 tokens
LONGEST_ANSWER = 80  # characters
INDENT = 4 * " "  # of a method
EACH = 500  # questions of a kind, at most
ANSWERABLE = 0.8  # share of them

Place = ast.expr | ast.stmt | tuple[int, int]  # a node of the file, or start and end in the context
Asked = tuple[str, Sequence[Place]]  # a question, and where its answers stand


@dataclass(frozen=True)
class Context:
    """A function as its readers see it: a method below the line of its class."""

    function: Function
    text: str

    def span(self, answer: Place) -> tuple[int, int]:
        """Start and end in `text`, of a node of the whole file."""
        if isinstance(answer, tuple):
            return answer
        assert answer.end_lineno is not None
        assert answer.end_col_offset is not None
        return self._index(answer.lineno, answer.col_offset), self._index(answer.end_lineno, answer.end_col_offset)

    def own(self, *kinds: type[ast.AST]) -> list[Any]:
        """Nodes of some kinds, without those of functions and classes inside."""
        return [node for node in self._nodes if isinstance(node, kinds)]

    @cached_property
    def _nodes(self) -> list[ast.AST]:
        return [node for statement in self.function.node.body for node in _own(statement)]

    @cached_property
    def _starts(self) -> list[int]:
        """Where each line of `text` starts."""
        return [0, *itertools.accumulate(len(line) + 1 for line in self.text.split("\n"))]

    def _index(self, line: int, column: int) -> int:
        """ast counts lines from 1, and bytes, which are the characters of ASCII."""
        node, is_method = self.function.node, bool(self.function.class_name)
        return self._starts[line - node.lineno + is_method] + column - node.col_offset + len(INDENT) * is_method


def questions() -> Iterator[Example]:
    """{"id", "context", "question", "answers"}: of each kind the same number, of which ANSWERABLE have an answer."""
    for context in filter(None, map(context_of, functions())):
        for kind, ask in KINDS.items():
            for question, answers in ask(context):
                spans = [context.span(answer) for answer in answers]
                if all(is_answer(context.text[start:end]) for start, end in spans):
                    yield example(context, kind, question, spans)


def example(context: Context, kind: str, question: str, spans: list[tuple[int, int]]) -> Example:
    texts = [context.text[start:end] for start, end in spans]
    answers = {"text": texts, "answer_start": [start for start, _ in spans]}
    place = f"{context.function.module}:{context.function.node.lineno}"
    row = {"id": f"{place}: {question}", "context": context.text, "question": question, "answers": answers}
    group, share = (kind, ANSWERABLE) if spans else (f"{kind} without answer", 1 - ANSWERABLE)
    return Example(context.function.module, group, round(EACH * share), f"{question}\n{context.text}", row)


def is_answer(text: str) -> bool:
    """One line, not too long, and with a word: SQuAD's scores know no other text."""
    return len(text) <= LONGEST_ANSWER and "\n" not in text and re.search(r"\w\w|\d", text) is not None


def context_of(function: Function) -> Context | None:
    """None for a function that is too short or too long."""
    text = function.source
    if function.class_name:
        text = f"class {function.class_name}:\n{textwrap.indent(text, INDENT)}"
    return Context(function, text) if SHORTEST <= len(text) <= LONGEST else None


def of_defaults(context: Context) -> Iterator[Asked]:
    of = context.function.node.args
    plain = [*of.posonlyargs, *of.args]
    given: dict[str, ast.expr | None] = dict.fromkeys((a.arg for a in plain if a.arg not in ("self", "cls")), None)
    given |= {a.arg: value for a, value in zip(plain[::-1], of.defaults[::-1], strict=False)}
    given |= {a.arg: value for a, value in zip(of.kwonlyargs, of.kw_defaults, strict=True)}
    for name, value in given.items():
        question = f"What is the default of parameter {name} of {context.function.full_name}?"
        yield question, [] if value is None else [value]


def of_returns(context: Context) -> Iterator[Asked]:
    values = [node.value for node in context.own(ast.Return) if node.value is not None]
    if len(values) < 2 and not context.own(ast.Yield, ast.YieldFrom):
        yield f"What does {context.function.full_name} return?", values


def of_raises(context: Context) -> Iterator[Asked]:
    raised = [node.exc.func if isinstance(node.exc, ast.Call) else node.exc for node in context.own(ast.Raise)]
    if all(isinstance(name, ast.Name | ast.Attribute) for name in raised) and len(set(map(ast.unparse, raised))) < 2:
        yield f"Which exception does {context.function.full_name} raise?", raised


def of_handlers(context: Context) -> Iterator[Asked]:
    caught = [node.type for node in context.own(ast.ExceptHandler)]
    if all(isinstance(name, ast.Name | ast.Attribute) for name in caught) and len(set(map(ast.unparse, caught))) < 2:
        yield f"Which exception does {context.function.full_name} catch?", caught


def of_loops(context: Context) -> Iterator[Asked]:
    over = [node.iter for node in context.own(ast.For, ast.AsyncFor)]
    if len(over) < 2:
        yield f"What does the loop of {context.function.full_name} go over?", over


def of_assignments(context: Context) -> Iterator[Asked]:
    """A name that is assigned once; and a parameter that never is, which has no answer."""
    stored = [node.id for node in context.own(ast.Name) if isinstance(node.ctx, ast.Store)]
    once = {node.targets[0].id: node.value for node in context.own(ast.Assign)
            if isinstance(node.targets[0], ast.Name) and stored.count(node.targets[0].id) == 1}  # fmt: skip
    never = [a.arg for a in context.function.node.args.args if a.arg not in (*stored, "self", "cls")]
    for name in (*once, *never):
        question = f"What is assigned to {name} in {context.function.full_name}?"
        yield question, [once[name]] if name in once else []


def of_classes(context: Context) -> Iterator[Asked]:
    name = context.function.class_name
    start = len("class ")
    yield f"In which class is {context.function.name} defined?", [(start, start + len(name))] if name else []


def of_docstrings(context: Context) -> Iterator[Asked]:
    question, summary = f"What is {context.function.full_name} for?", context.function.summary
    if not summary:
        yield question, []
        return
    docstring, _ = context.span(context.function.node.body[0])
    start = context.text.find(summary, docstring)
    if start >= 0:  # else it is broken over lines
        yield question, [(start, start + len(summary))]


KINDS: dict[str, Callable[[Context], Iterator[Asked]]] = {
    "default": of_defaults, "return": of_returns, "raise": of_raises, "except": of_handlers, "loop": of_loops,
    "assign": of_assignments, "class": of_classes, "docstring": of_docstrings,
}  # fmt: skip


def _own(node: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(node, Definition | ast.ClassDef | ast.Lambda):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _own(child)
