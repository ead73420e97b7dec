"""The verbs on a trained model."""

from dgpt import verbs
from dgpt.cli.options import CHECKPOINT, Verbs, add_verb
from dgpt.storage import place


def _export(subparsers: Verbs) -> None:
    text = "write a model's weights, settings and tokenizer to one folder, which `dgpt generate` takes"
    parser = add_verb(subparsers, "export", verbs.export, text)
    parser.add_argument("source", type=place, metavar="PATH", help=CHECKPOINT)
    parser.add_argument("output", type=place, metavar="FOLDER", help="a new folder or URL")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (default: fp32)")


ADDERS = (_export,)
