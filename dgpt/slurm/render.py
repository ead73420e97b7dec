"""The text of a batch script: a script of slurm/ with the options of one submission. A pure function.

sbatch reads #SBATCH lines with a quoting of its own and the shell reads the rest: user text is refused where it would
mean something to sbatch, and quoted for the shell.
"""

import re
import shlex
from collections.abc import Mapping, Sequence

from dgpt.errors import UserError

_PLAIN = re.compile(r"[\w./:,=@%+\[\]()&|*~^!<>?{} -]*")  # no quote, backslash, #, $ or control character


def render(template: str, options: Mapping[str, str], extra: Sequence[str], exports: Mapping[str, str],
           arguments: Sequence[str]) -> str:  # fmt: skip
    """A script of slurm/ as one submission needs it.

    options: of sbatch, by name without dashes; an empty value is a bare flag. They replace those of the template.
    extra: whole options, such as --mem=0. exports: variables for the script. arguments: of the script.
    Raises UserError for text with a newline or a sign that sbatch does not take as it is.
    """
    lines = template.splitlines()
    header = [line for line in lines if line.startswith("#SBATCH ")]
    kept = [line for line in header if _name(line) not in options]
    given = [f"#SBATCH {_option(name, value)}" for name, value in options.items()]
    given += [f"#SBATCH {_extra(option)}" for option in extra]
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    rest = [line for line in lines[1:first] if line not in header]
    settings = [f"export {name}={shlex.quote(_one_line(name, value))}" for name, value in exports.items()]
    words = " ".join(shlex.quote(_one_line("argument", word)) for word in arguments)
    body = [lines[first], *settings, f"set -- {words}", *lines[first + 1 :]]
    return "\n".join([lines[0], *kept, *given, *rest, *body]) + "\n"


def _name(line: str) -> str:
    return line.removeprefix("#SBATCH --").partition("=")[0]


def _option(name: str, value: str) -> str:
    text = _checked(f"--{name}", value)
    return f'--{name}="{text}"' if " " in text else f"--{name}={text}" if text else f"--{name}"


def _extra(option: str) -> str:
    """Raises UserError for what sbatch would pass over."""
    if not option.startswith("-"):
        raise UserError(f"--sbatch-arg = {option!r} is no option", rule="an option of sbatch begins with a dash",
                        fix=f"write --sbatch-arg=--{option}")  # fmt: skip
    name, equals, value = _checked("--sbatch-arg", option).partition("=")
    return f'{name}="{value}"' if equals and " " in value else option


def _checked(name: str, text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    raise UserError(f"{name} = {text!r} cannot stand in a batch script",
                    rule="one line, without quotes, backslashes, # and $",
                    fix="give another value; for a path, use a folder with a plain name")  # fmt: skip


def _one_line(name: str, text: str) -> str:
    if "\n" in text or "\r" in text or "\0" in text:
        raise UserError(f"{name} {text!r} holds a line break", rule="an argument of a job is one line",
                        fix="put it into the TOML file")  # fmt: skip
    return text
