"""The verbs from a trained model to one for a task."""

from pathlib import Path

from dgpt.cli.options import CHECKPOINT, Verbs, add_verb, on_config, settings, with_config, with_nproc
from dgpt.config import FinetuneConfig
from dgpt.storage import place
from dgpt.verbs import finetuning


def _finetune(subparsers: Verbs) -> None:
    text = "train a model on the examples of a task; on an existing run folder, go on from its newest whole checkpoint"
    parser = add_verb(subparsers, "finetune", on_config(finetuning.finetune, FinetuneConfig), text,
                      settings(FinetuneConfig))  # fmt: skip
    with_config(parser, FinetuneConfig)
    with_nproc(parser)


def _predict(subparsers: Verbs) -> None:
    text = "run a fine-tuned model over a file of rows, or over one row; writes JSON lines"
    parser = add_verb(subparsers, "predict", finetuning.predict, text)
    parser.add_argument("model", type=place, metavar="MODEL", help=f"fine-tuned: {CHECKPOINT}; or an export")
    parser.add_argument("file", type=Path, nargs="?", help=".jsonl, .csv or .parquet, with the fields of the task")
    parser.add_argument("--text", help="one text to classify, or one prompt to continue")
    parser.add_argument("--text-pair", metavar="TEXT", help="its second text")
    parser.add_argument("--context", metavar="TEXT", help="one text that holds the answer to --question")
    parser.add_argument("--question", metavar="TEXT", help="one question")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a new .jsonl (default: standard output)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="rows at once (default: 32)")


ADDERS = (_finetune, _predict)
