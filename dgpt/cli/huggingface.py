"""The verbs between dgpt and the models of `transformers`."""

import argparse
import re
from pathlib import Path

from dgpt.cli.options import CHECKPOINT, Verbs, add_verb
from dgpt.storage import place
from dgpt.verbs import huggingface

UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}


def _size(text: str) -> int:
    """Bytes of 5GB (10^9, as transformers counts) or 4GiB (2^30)."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMG]?)(i?)B?", text, re.IGNORECASE)
    unit = UNITS[match[2].upper()] if match else 0
    size = int(float(match[1]) * (unit if not match[3] else 1 << 10 * len(str(unit)) // 3)) if match else 0
    if not size:
        raise argparse.ArgumentTypeError(f"{text} is not a size such as 5GB, 500MB or 4GiB")
    return size


def _export(subparsers: Verbs) -> None:
    text = "write a model with its tokenizer to one folder, for transformers or for dgpt"
    parser = add_verb(subparsers, "export", huggingface.export, text)
    parser.add_argument("source", type=place, metavar="PATH", help=CHECKPOINT)
    parser.add_argument("output", type=place, metavar="FOLDER", help="a new folder or URL")
    parser.add_argument("--format", choices=("huggingface", "dgpt"), default="huggingface",
                        help="huggingface: transformers loads it without dgpt (default)")  # fmt: skip
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (default: fp32)")
    parser.add_argument("--max-shard-size", type=_size, metavar="SIZE",
                        help="of a safetensors file of format huggingface (default: 5GB)")  # fmt: skip


def _import(subparsers: Verbs) -> None:
    text = "make a model of dgpt from a folder of transformers (GPT-2 or Llama, safetensors)"
    parser = add_verb(subparsers, "import", huggingface.import_, text)
    parser.add_argument("source", type=Path, metavar="HF_FOLDER", help="with config.json, tokenizer.json, safetensors")
    parser.add_argument("output", type=place, metavar="FOLDER", help="a new folder or URL")


def _convert_pickle(subparsers: Verbs) -> None:
    text = "copy a folder of transformers with its pickled weights (.bin) as safetensors, which no other verb reads"
    note = ("A pickle can run any code. It is opened by torch.load(weights_only=True), which accepts tensors alone,\n"
            "in a process of its own, without network, other programs, or more memory than weights need.")  # fmt: skip
    parser = add_verb(subparsers, "convert-pickle", huggingface.convert_pickle, text, note)
    parser.add_argument("source", type=Path, metavar="HF_FOLDER", help="with pytorch_model.bin, or shards of it")
    parser.add_argument("output", type=Path, metavar="FOLDER", help="a new folder")


ADDERS = (_export, _import, _convert_pickle)
