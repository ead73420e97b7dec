"""`dgpt`: the verbs. Wiring only; each verb imports what it needs when it runs."""

import argparse
from collections.abc import Sequence

from dgpt import __version__, outcome
from dgpt.cli import checkpoints, evaluation, finetuning, huggingface, slurm, training

ADDERS = (*training.ADDERS, *finetuning.ADDERS, *slurm.ADDERS, *evaluation.ADDERS, *huggingface.ADDERS,
          *checkpoints.ADDERS)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0 done, 2 a mistake of the user, 75 stopped after a save, 1 a failure."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    before = rest[: rest.index("--")] if "--" in rest else rest
    if rest and (options.list_name is None or any(word.startswith("-") for word in before)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes a list before the options or after them, not both
        words = before + rest[len(before) + 1 :]
        setattr(options, options.list_name, getattr(options, options.list_name) + words)
    return outcome.guard(lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dgpt",
        allow_abbrev=False,
        description="Pretrain GPT models: raw text -> tokens -> ZeRO x tensor parallel training; and fine-tune them.",
    )
    parser.add_argument("--version", action="version", version=f"dgpt {__version__}")
    subparsers = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for add in ADDERS:
        add(subparsers)
    return parser
