"""What a function does, in a line: prompt and completion, and the same as conversations."""

import ast
import copy
from collections.abc import Iterator

from dgpt.data.demo_tasks.example import Example
from dgpt.data.demo_tasks.functions import Function, functions

SYSTEM = "You explain the Python standard library."
EXAMPLES = 5000  # at most
LONGEST_SIGNATURE = 160  # characters
SHORTEST, LONGEST = 3, 24  # words of a summary


def prompts() -> Iterator[Example]:
    """{"prompt", "completion"}: a signature with its module above it, and the docstring's first sentence."""
    for function in documented():
        prompt = f"# {place(function)}\n{signature(function)}\n"
        row = {"prompt": prompt, "completion": function.summary}
        yield Example(function.module, "", EXAMPLES, prompt, row)


def conversations() -> Iterator[Example]:
    """{"messages"}: what does it do, and then, where it has any, which parameters does it take."""
    for function in documented():
        messages = conversation(function)
        text = "\n".join(message["content"] for message in messages)
        yield Example(function.module, "", EXAMPLES, text, {"messages": messages})


def documented() -> list[Function]:
    """Functions whose docstring says in one short sentence what they do."""
    return [f for f in functions() if SHORTEST <= len(f.summary.split()) <= LONGEST and f.summary.isascii()
            and f.summary[0].isupper() and len(signature(f)) <= LONGEST_SIGNATURE]  # fmt: skip


def conversation(function: Function) -> list[dict[str, str]]:
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"What does {function.full_name} of module {function.module} do?"},
        {"role": "assistant", "content": function.summary},
    ]
    names = parameters(function)
    if names:
        messages += [
            {"role": "user", "content": f"Here it is:\n{signature(function)}\nWhich parameters does it take?"},
            {"role": "assistant", "content": f"It takes {listed(names)}."},
        ]
    return messages


def place(function: Function) -> str:
    return f"{function.module}.{function.class_name}" if function.class_name else function.module


def signature(function: Function) -> str:
    """Its first line as Python writes it: def get(self, key, default=None)."""
    bare = copy.copy(function.node)
    bare.body, bare.decorator_list = [ast.Pass()], []
    return ast.unparse(bare).split(":\n")[0]


def parameters(function: Function) -> list[str]:
    """Their names in order, without that of the object itself."""
    of = function.node.args
    names = [a.arg for a in (*of.posonlyargs, *of.args, of.vararg, *of.kwonlyargs, of.kwarg) if a is not None]
    return names[1:] if names and names[0] in ("self", "cls") else names


def listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
