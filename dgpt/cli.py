"""`dgpt`: the verbs. Wiring only; each verb imports what it needs when it runs."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dgpt import __version__, checkpoint_verbs, outcome, slurm_verbs, verbs
from dgpt.config import RunConfig, load_config, settings_help, to_toml
from dgpt.storage import place

Command = Callable[[argparse.Namespace], int]
_CHECKPOINT = "a checkpoint, or a run folder: its newest one; a path or a URL (s3://...)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0 done, 2 a mistake of the user, 75 stopped after a save, 1 a failure."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (options.list_name is None or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes a list before the options or after them, not both
        setattr(options, options.list_name, getattr(options, options.list_name) + rest)
    return outcome.guard(lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dgpt",
        allow_abbrev=False,
        description="Pretrain GPT models: raw text -> tokens -> ZeRO x tensor parallel training -> samples.",
    )
    parser.add_argument("--version", action="version", version=f"dgpt {__version__}")
    subparsers = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for add in ADDERS:
        add(subparsers)
    return parser


Verbs = Any  # what add_subparsers returns has no public name


def _verb(subparsers: Verbs, name: str, command: Command, text: str, epilog: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.set_defaults(command=command, list_name=None)
    return parser


def _with_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="RUN.toml", help="the run (configs/pretrain/ has ready ones)")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings that replace the file's")
    parser.set_defaults(list_name="overrides")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings as TOML and stop")


def _with_nproc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nproc", type=int, help="processes on this node (default: one per GPU, one without GPUs)")


def _settings() -> str:
    return f"settings, with their defaults:\n{settings_help()}"


def _config_of(options: argparse.Namespace) -> RunConfig:
    return load_config(options.config, options.overrides)


def _on_config(run: Callable[[RunConfig, argparse.Namespace], int]) -> Command:
    """A command on a config, which --print-config prints instead."""

    def command(options: argparse.Namespace) -> int:
        config = _config_of(options)
        if not options.print_config:
            return run(config, options)
        print(to_toml(config), end="")
        return outcome.DONE

    return command


def _prepare(subparsers: Verbs) -> None:
    parser = _verb(
        subparsers, "prepare", _on_config(verbs.prepare), "raw text -> tokenizer and token shards", _settings()
    )
    _with_config(parser)
    parser.add_argument("--inspect", action="store_true", help="show counts, document lengths and decoded samples")
    parser.add_argument("--verify", action="store_true", help="hash every file of the prepared data")


def _pretrain(subparsers: Verbs) -> None:
    text = "train the model; on an existing run folder, go on from its newest whole checkpoint"
    parser = _verb(subparsers, "pretrain", _on_config(verbs.pretrain), text, _settings())
    _with_config(parser)
    _with_nproc(parser)


def _submit(subparsers: Verbs) -> None:
    text = "check a run against its topology and give it to Slurm; it saves before the time limit and goes on by itself"
    parser = _verb(subparsers, "submit", _on_config(slurm_verbs.submit), text)
    _with_config(parser)
    parser.add_argument("--verb", choices=("pretrain", "prepare"), default="pretrain", help="what to run (pretrain)")
    parser.add_argument("--nodes", type=_positive, default=1, metavar="N", help="default: 1")
    parser.add_argument("--gpus-per-node", type=_positive, metavar="G", help="one process for each")
    parser.add_argument("--nproc", type=_positive, metavar="P", help="processes per node, on CPUs (default: 1)")
    parser.add_argument("--cpus-per-task", type=_positive, metavar="C", help="CPUs of each node for the run")
    for name, what in (("time", "24:00:00"), ("partition", "NAME"), ("account", "NAME"), ("qos", "NAME"),
                       ("constraint", "FEATURES"), ("exclude", "NODES"), ("dependency", "afterok:ID"),
                       ("array", "1-10%%1")):  # fmt: skip
        parser.add_argument(f"--{name}", metavar=what, help="as in sbatch(1)")
    parser.add_argument("--container", metavar="IMAGE", help="run the ranks in it: a .sif file, or an image for pyxis")
    parser.add_argument("--sbatch-arg", action="append", default=[], metavar="OPTION", help="any other; repeatable")
    parser.add_argument("--chain", type=_positive, default=1, metavar="N", help="submit N jobs, one after the other")
    text = "save so long before the time limit (default: from step time and checkpoint size)"
    parser.add_argument("--signal-lead", type=_positive, metavar="SECONDS", help=text)
    parser.add_argument("--dry-run", action="store_true", help="print the batch script instead")


def _run_verb(subparsers: Verbs, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    parser = _verb(subparsers, name, command, text)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    return parser


def _status(subparsers: Verbs) -> None:
    text = "what a run is doing, why it waits, what ended it"
    parser = _run_verb(subparsers, "status", slurm_verbs.show_status, text)
    parser.add_argument("--watch", action="store_true", help="look again every few seconds")


def _logs(subparsers: Verbs) -> None:
    text = "what the ranks of a job wrote"
    parser = _run_verb(subparsers, "logs", slurm_verbs.show_logs, text)
    parser.add_argument("--rank", type=int, metavar="R", help="of this rank alone")
    parser.add_argument("--restart", type=int, metavar="R", help="of this start, from 0 (default: the newest)")
    parser.add_argument("--follow", action="store_true", help="go on with what they write, until the run ends")


def _stop(subparsers: Verbs) -> None:
    _run_verb(subparsers, "stop", slurm_verbs.stop, "let a run save and end, or cancel it while it waits")


def _save(subparsers: Verbs) -> None:
    _run_verb(subparsers, "save", slurm_verbs.save, "let a run save a checkpoint now, and go on")


def _generate(subparsers: Verbs) -> None:
    text = "continue prompts with a trained model, from a checkpoint of any topology"
    parser = _verb(subparsers, "generate", verbs.generate, text)
    parser.add_argument("model", type=place, metavar="RUN_OR_CHECKPOINT", help=f"{_CHECKPOINT}; or an export")
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", help="text to continue (none: start a new document)")
    parser.set_defaults(list_name="prompts")
    parser.add_argument("--prompts-file", type=Path, help="a file with one prompt per line")
    parser.add_argument("--samples", type=int, default=1, help="continuations of each prompt (default: 1)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="length of a continuation (default: 128)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k most likely tokens (default: 0, all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from this much probability (default: 1, all)")
    parser.add_argument("--seed", type=int, default=1337, help="same seed, same text (default: 1337)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--batch-size", type=int, default=64, help="continuations at once (default: 64)")


def _checkpoint(subparsers: Verbs) -> None:
    text = "look at the checkpoints of a run, compare, thin out and average them"
    parser = _verb(subparsers, "checkpoint", checkpoint_verbs.show, text)
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    for add in (_list, _show, _verify, _diff, _prune, _average):
        add(actions)


def _list(actions: Verbs) -> None:
    text = "step, tokens, loss, size and age of each checkpoint of a run, and whether it is whole by its sizes"
    parser = _verb(actions, "list", checkpoint_verbs.list_, text)
    parser.add_argument("run", type=place, metavar="RUN", help="a run folder")


def _show(actions: Verbs) -> None:
    parser = _verb(actions, "show", checkpoint_verbs.show, "progress, topology and tensors of a checkpoint")
    parser.add_argument("path", type=place, metavar="PATH", help=_CHECKPOINT)


def _verify(actions: Verbs) -> None:
    text = "read every byte and compare with the hashes; exit code 0: whole, 2: damaged"
    parser = _verb(actions, "verify", checkpoint_verbs.verify, text)
    parser.add_argument("path", type=place, metavar="PATH", help="a checkpoint, or a run folder: all that it holds")


def _diff(actions: Verbs) -> None:
    text = "compare the tensors of two checkpoints of any topology; exit code 0: equal, every bit, 1: not, 2: a mistake"
    parser = _verb(actions, "diff", checkpoint_verbs.diff, text)
    for name in ("a", "b"):
        parser.add_argument(name, type=place, metavar=name.upper(), help=_CHECKPOINT)
    parser.add_argument("--all", action="store_true", help="show every tensor, not only the most different")


def _prune(actions: Verbs) -> None:
    text = "delete old checkpoints of a run that has ended; damaged ones neither count nor go"
    parser = _verb(actions, "prune", checkpoint_verbs.prune, text)
    parser.add_argument("run", type=place, metavar="RUN", help="a run folder")
    parser.add_argument("--keep-last", type=_positive, required=True, metavar="K", help="keep the newest K whole ones")
    parser.add_argument("--keep-every", type=_positive, default=0, metavar="N", help="keep multiples of N steps too")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")


def _average(actions: Verbs) -> None:
    text = "write the mean of the weights of several checkpoints, as a folder that `dgpt generate` takes"
    parser = _verb(actions, "average", checkpoint_verbs.average, text)
    parser.add_argument("sources", type=place, metavar="PATH", nargs="+", help=f"two or more; each {_CHECKPOINT}")
    parser.set_defaults(list_name="sources")
    parser.add_argument("--output", type=place, required=True, metavar="FOLDER", help="a new folder or URL")


def _export(subparsers: Verbs) -> None:
    text = "write a model's weights, settings and tokenizer to one folder, which `dgpt generate` takes"
    parser = _verb(subparsers, "export", verbs.export, text)
    parser.add_argument("source", type=place, metavar="PATH", help=_CHECKPOINT)
    parser.add_argument("output", type=place, metavar="FOLDER", help="a new folder or URL")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (default: fp32)")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _tensorboard(subparsers: Verbs) -> None:
    parser = _verb(
        subparsers, "tensorboard", verbs.tensorboard, "show a run's curves in the browser, on 127.0.0.1 alone"
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--port", type=int, help="default: 6006, or a free one")


def _parity(subparsers: Verbs) -> None:
    text = "train a few steps at every ZeRO stage and TP degree, and compare with one process"
    parser = _verb(subparsers, "parity", _on_config(verbs.parity), text)
    _with_config(parser)
    _with_nproc(parser)
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of each topology (default: 8)")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest relative difference (default: 1e-5)")


ADDERS = (_prepare, _pretrain, _submit, _status, _logs, _stop, _save, _generate, _checkpoint, _export, _tensorboard,
          _parity)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
