"""What several verbs share: how a verb is added, and the options that they have in common."""

import argparse
import math
from collections.abc import Callable
from typing import Any, TypeVar

from dgpt import outcome
from dgpt.config import FinetuneConfig, RunConfig, load_settings, settings_help, to_toml

Command = Callable[[argparse.Namespace], int]
Verbs = Any  # what add_subparsers returns has no public name
Config = TypeVar("Config", RunConfig, FinetuneConfig)
CHECKPOINT = "a checkpoint, or a run folder: its newest one; a path or a URL (s3://...)"


def add_verb(subparsers: Verbs, name: str, command: Command, text: str, epilog: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.set_defaults(command=command, list_name=None)
    return parser


def with_config(parser: argparse.ArgumentParser, kind: type[Config] = RunConfig) -> None:  # type: ignore[assignment]
    parser.add_argument("config", metavar="RUN.toml", help=f"the run (configs/{kind.verb}/ has ready ones)")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings that replace the file's")
    parser.set_defaults(list_name="overrides")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings as TOML and stop")


def with_nproc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nproc", type=int, help="processes on this node (default: one per GPU, one without GPUs)")


def settings(kind: type[Config] = RunConfig) -> str:  # type: ignore[assignment]
    return f"settings, with their defaults:\n{settings_help(kind)}"


def on_config(run: Callable[[Config, argparse.Namespace], int], kind: type[Config] = RunConfig) -> Command:  # type: ignore[assignment]
    """A command on a config, which --print-config prints instead."""

    def command(options: argparse.Namespace) -> int:
        config = load_settings(kind, options.config, options.overrides)
        if not options.print_config:
            return run(config, options)
        print(to_toml(config), end="")
        return outcome.DONE

    return command


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def positive_number(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return number
