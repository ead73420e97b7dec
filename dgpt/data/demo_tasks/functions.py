"""Functions of the Python standard library of this machine, read with `ast`: nothing is imported or run."""

import ast
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dgpt.data.sources import stdlib_files
from dgpt.errors import UserError

Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """A function, or a method of a class; none that is defined inside a function."""

    module: str  # email.message
    class_name: str  # Message; '' for a function
    name: str  # get_payload
    source: str  # its text without decorators, at no indentation
    node: Definition  # of the whole file: positions in it are not those in `source`

    @property
    def full_name(self) -> str:
        return f"{self.class_name}.{self.name}" if self.class_name else self.name

    @property
    def summary(self) -> str:
        """First sentence of its docstring's first paragraph, in one line; '' without one."""
        paragraph = (ast.get_docstring(self.node) or "").split("\n\n")[0]
        return re.split(r"(?<=\.) (?=[A-Z])", " ".join(paragraph.split()), maxsplit=1)[0]


@cache
def functions() -> tuple[Function, ...]:
    """All of them, in the order of their files. Raises UserError where this Python comes without its source."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in stdlib_files() if file.suffix == ".py"]
    found = [function for file in files for function in _functions_of(file, file.relative_to(root))]
    if not found:
        raise UserError(f"no Python source in {root}", rule="the demo examples are made from the standard library",
                        fix="use a Python that brings its source, or give data.train and data.validation")  # fmt: skip
    return tuple(found)


def _functions_of(file: Path, relative: Path) -> Iterator[Function]:
    module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in old docstrings
            tree = ast.parse(text)
    except SyntaxError:  # templates and examples of older Pythons
        return
    lines = text.split("\n")  # as ast counts them: str.splitlines() knows more ends of lines
    for parent, node in _definitions(tree):
        source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        if source.isascii() and source.startswith(("def ", "async def ")):
            yield Function(module, parent, node.name, source, node)


def _definitions(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    for node in tree.body:
        if isinstance(node, Definition):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            yield from ((node.name, member) for member in node.body if isinstance(member, Definition))
