"""The verbs that let a trained model speak, and that measure it."""

import argparse
from pathlib import Path

from dgpt.cli.options import CHECKPOINT, Verbs, add_verb, positive, with_nproc
from dgpt.storage import place
from dgpt.verbs import evaluation, generation


def _generate(subparsers: Verbs) -> None:
    text = "continue prompts with a trained model, from a checkpoint of any topology"
    parser = add_verb(subparsers, "generate", generation.generate, text)
    _with_model(parser)
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", help="text to continue (none: start a new document)")
    parser.set_defaults(list_name="prompts")
    parser.add_argument("--prompts-file", type=Path, metavar="FILE", help="a prompt per line; or .jsonl, with --field")
    parser.add_argument("--field", default="prompt", help="that holds the prompt in .jsonl (default: prompt)")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="a new .jsonl: each row of the input with completion, reason and sample")  # fmt: skip
    parser.add_argument("--stream", action="store_true", help="show text as it comes, one continuation after the other")
    parser.add_argument("--samples", type=int, default=1, help="continuations of each prompt (default: 1)")
    _with_sampling(parser, max_new_tokens=128)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--batch-size", type=int, default=64, help="continuations at once (default: 64)")


def _chat(subparsers: Verbs) -> None:
    text = "talk to an instruction-tuned model in the terminal; piped input is answered line by line"
    parser = add_verb(subparsers, "chat", generation.chat, text)
    _with_model(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="instructions that hold for all that follows")
    _with_sampling(parser, max_new_tokens=512)


def _evaluate(subparsers: Verbs) -> None:
    text = "loss, perplexity and bits per byte of a text under a model; a fine-tuned model's task; harness tasks"
    parser = add_verb(subparsers, "evaluate", evaluation.evaluate, text)
    _with_model(parser)
    add = parser.add_argument
    data = "a prepared folder, a text, JSONL or Parquet file, or a task file (default: the data of the model's run)"
    add("data", type=Path, nargs="?", metavar="DATA", help=data)
    add("--text", action="store_true", help="measure text, though the model was fine-tuned for a task")
    add("--split", choices=("train", "val"), default="val", help="of a prepared folder (default: val)")
    add("--field", default="text", help="that holds the text in JSONL and Parquet (default: text)")
    add("--seq-len", type=positive, metavar="T", help="tokens of a window (default: the model's, which is the most)")
    add("--stride", type=positive, metavar="S", help="tokens scored by each window after the first; fewer than "
        "--seq-len: each sees at least seq_len - S tokens before it (default: --seq-len)")  # fmt: skip
    add("--limit", type=positive, metavar="N", help="only the first N windows, or N rows of a task, drawn by its seed")
    add("--batch-size", type=positive, default=8, metavar="B", help="windows at once on a process (default: 8)")
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="to compute in (default: fp32)")
    add("--json", action="store_true", help="print one JSON object")
    add("--lm-eval", nargs="+", default=[], metavar="TASK", help="run these tasks of lm-evaluation-harness instead")
    add("--include-path", type=Path, metavar="FOLDER", help="task files (.yaml) of your own, for --lm-eval")
    add("--num-fewshot", type=int, metavar="N", help="examples before each question, for --lm-eval")
    with_nproc(parser)


def _with_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=place, metavar="MODEL", help=f"{CHECKPOINT}; or an export")


def _with_sampling(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    add = parser.add_argument
    add("--max-new-tokens", type=int, default=max_new_tokens, help=f"length, at most (default: {max_new_tokens})")
    add("--temperature", type=float, default=0.8, help="0 is greedy (default: 0.8)")
    add("--top-k", type=int, default=0, help="draw from the k most likely tokens (default: 0, all)")
    add("--top-p", type=float, default=1.0, help="draw from this much probability (default: 1, all)")
    add("--min-p", type=float, default=0.0,
        help="draw from tokens with this share of the likeliest one's probability (default: 0, all)")  # fmt: skip
    add("--repetition-penalty", type=float, default=1.0, metavar="X",
        help="above 1: tokens of prompt and text so far become less likely (default: 1, off)")  # fmt: skip
    add("--seed", type=int, default=1337, help="same seed, same text (default: 1337)")


ADDERS = (_generate, _chat, _evaluate)
