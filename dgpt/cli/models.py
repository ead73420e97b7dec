"""The verbs on a trained model."""

from pathlib import Path

from dgpt import verbs
from dgpt.cli.options import CHECKPOINT, Verbs, add_verb
from dgpt.storage import place


def _generate(subparsers: Verbs) -> None:
    text = "continue prompts with a trained model, from a checkpoint of any topology"
    parser = add_verb(subparsers, "generate", verbs.generate, text)
    parser.add_argument("model", type=place, metavar="RUN_OR_CHECKPOINT", help=f"{CHECKPOINT}; or an export")
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


def _export(subparsers: Verbs) -> None:
    text = "write a model's weights, settings and tokenizer to one folder, which `dgpt generate` takes"
    parser = add_verb(subparsers, "export", verbs.export, text)
    parser.add_argument("source", type=place, metavar="PATH", help=CHECKPOINT)
    parser.add_argument("output", type=place, metavar="FOLDER", help="a new folder or URL")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (default: fp32)")


ADDERS = (_generate, _export)
