"""The verbs around a run on Slurm."""

import argparse
from pathlib import Path

from dgpt.cli.options import Command, Verbs, add_verb, positive, with_config
from dgpt.kinds import KINDS
from dgpt.verbs import doctor, slurm

AFTER = "options of the verb itself stand after --, as in: dgpt submit MODEL --verb VERB -- --option value"


def _submit(subparsers: Verbs) -> None:
    text = "check a run against its topology and give it to Slurm; it saves before the time limit and goes on by itself"
    parser = add_verb(subparsers, "submit", slurm.submit, text, AFTER)
    with_config(parser)
    parser.add_argument("--verb", choices=tuple(KINDS), default="pretrain", help="what to run (pretrain)")
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="default: 1")
    parser.add_argument("--gpus-per-node", type=positive, metavar="G", help="one process for each")
    parser.add_argument("--nproc", type=positive, metavar="P", help="processes per node, on CPUs (default: 1)")
    parser.add_argument("--cpus-per-task", type=positive, metavar="C", help="CPUs of each node for the run")
    for name, what in (("time", "24:00:00"), ("partition", "NAME"), ("account", "NAME"), ("qos", "NAME"),
                       ("constraint", "FEATURES"), ("exclude", "NODES"), ("dependency", "afterok:ID"),
                       ("array", "1-10%1")):  # fmt: skip
        parser.add_argument(f"--{name}", metavar=what, help="as in sbatch(1)")
    parser.add_argument("--container", metavar="IMAGE", help="run the ranks in it: a .sif file, or an image for pyxis")
    parser.add_argument("--sbatch-arg", action="append", default=[], metavar="OPTION", help="any other; repeatable")
    parser.add_argument("--chain", type=positive, default=1, metavar="N", help="submit N jobs, one after the other")
    text = "save so long before the time limit (default: from step time and checkpoint size)"
    parser.add_argument("--signal-lead", type=positive, metavar="SECONDS", help=text)
    parser.add_argument("--dry-run", action="store_true", help="print the batch script instead")


def _run_verb(subparsers: Verbs, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    parser = add_verb(subparsers, name, command, text)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    return parser


def _doctor(subparsers: Verbs) -> None:
    text = "examine this machine, or all nodes of the allocation that it is run in: fit to train?"
    parser = add_verb(subparsers, "doctor", doctor.doctor, text)
    parser.add_argument("config", metavar="RUN.toml", nargs="?", help="the run whose folder and settings are examined")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings that replace the file's")
    parser.add_argument("--verb", choices=tuple(name for name, kind in KINDS.items() if kind.load), default="pretrain",
                        help="what RUN.toml is for (pretrain)")  # fmt: skip
    parser.set_defaults(list_name="overrides")


def _status(subparsers: Verbs) -> None:
    text = "what a run is doing, why it waits, what ended it"
    parser = _run_verb(subparsers, "status", slurm.show_status, text)
    parser.add_argument("--watch", action="store_true", help="look again every few seconds")


def _logs(subparsers: Verbs) -> None:
    text = "what the ranks of a job wrote"
    parser = _run_verb(subparsers, "logs", slurm.show_logs, text)
    parser.add_argument("--rank", type=int, metavar="R", help="of this rank alone")
    parser.add_argument("--restart", type=int, metavar="R", help="of this start, from 0 (default: the newest)")
    parser.add_argument("--follow", action="store_true", help="go on with what they write, until the run ends")


def _stop(subparsers: Verbs) -> None:
    _run_verb(subparsers, "stop", slurm.stop, "let a run save and end, or cancel it while it waits")


def _save(subparsers: Verbs) -> None:
    _run_verb(subparsers, "save", slurm.save, "let a run save a checkpoint now, and go on")


ADDERS = (_submit, _doctor, _status, _logs, _stop, _save)
