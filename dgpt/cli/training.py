"""The verbs from raw text to a trained model."""

from pathlib import Path

from dgpt.cli.options import Verbs, add_verb, on_config, positive, positive_number, settings, with_config, with_nproc
from dgpt.verbs import training


def _prepare(subparsers: Verbs) -> None:
    parser = add_verb(
        subparsers, "prepare", on_config(training.prepare), "raw text -> tokenizer and token shards", settings()
    )
    with_config(parser)
    parser.add_argument("--inspect", action="store_true", help="show counts, document lengths and decoded samples")
    parser.add_argument("--verify", action="store_true", help="hash every file of the prepared data")


def _pretrain(subparsers: Verbs) -> None:
    text = "train the model; on an existing run folder, go on from its newest whole checkpoint"
    parser = add_verb(subparsers, "pretrain", on_config(training.pretrain), text, settings())
    with_config(parser)
    with_nproc(parser)


def _tensorboard(subparsers: Verbs) -> None:
    parser = add_verb(
        subparsers, "tensorboard", training.tensorboard, "show a run's curves in the browser, on 127.0.0.1 alone"
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--port", type=int, help="default: 6006, or a free one")


def _parity(subparsers: Verbs) -> None:
    text = "train a few steps at every ZeRO stage and TP degree, and compare with one process"
    parser = add_verb(subparsers, "parity", on_config(training.parity), text)
    with_config(parser)
    with_nproc(parser)
    parser.add_argument("--steps", type=positive, default=8, help="optimizer steps of each topology (default: 8)")
    parser.add_argument(
        "--tolerance", type=positive_number, default=1e-5, help="largest relative difference (default: 1e-5)"
    )


ADDERS = (_prepare, _pretrain, _tensorboard, _parity)
