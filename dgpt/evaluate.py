"""`dgpt evaluate`: loss, perplexity and bits per byte of a text under a model, on any number of processes.

Windows of text are dealt out to the ranks batch by batch, and their sums are added in the order of the batches: how
many processes there are changes nothing but the time. Each rank holds the whole model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dgpt.config import SourceConfig
from dgpt.data.loader import document_numbers
from dgpt.data.readers import SUFFIXES, file_format, reader_for
from dgpt.data.shards import INDEX_FILE, Split, open_split
from dgpt.data.tokenizer import Tokenizer
from dgpt.data.windows import IGNORE, Row, Stream, Text, Windows
from dgpt.errors import UserError
from dgpt.model.gpt import GPT
from dgpt.model.likelihood import log_likelihood
from dgpt.progress import count_bar
from dgpt.runtime import Runtime

BLOCK_BYTES = 1 << 22  # of a file that is read at once


@dataclass(frozen=True)
class Score:
    """What was measured. loss and perplexity are means over tokens, the ends of documents in prepared data included."""

    tokens: int
    bytes: int  # UTF-8, of the text of the tokens
    loss: float  # nats a token
    perplexity: float  # exp(loss)
    bits_per_byte: float  # of the tokens that stand for text: comparable between tokenizers
    windows: int
    seq_len: int
    stride: int


@dataclass(frozen=True)
class Plan:
    """How the text is read: settings of `Windows`, and windows at once."""

    seq_len: int
    stride: int
    batch_size: int
    limit: int = 0  # windows, 0: all
    reset_at_document: bool = False  # attention and positions start anew at each document, as in training


def check_plan(plan: Plan, most: int) -> None:
    """Raises UserError for windows that the model cannot read, or that would leave tokens out."""
    if plan.seq_len > most:
        raise UserError(f"--seq-len = {plan.seq_len}", rule=f"this model reads {most} tokens at most",
                        fix=f"give --seq-len {most} or fewer")  # fmt: skip
    if plan.stride > plan.seq_len:
        raise UserError(f"--stride = {plan.stride} with windows of {plan.seq_len} tokens",
                        rule="a stride is from 1 to the length of a window, so that every token is scored",
                        fix=f"give --stride {plan.seq_len} or fewer")  # fmt: skip


def evaluate(model: GPT, tokenizer: Tokenizer, rows: Sequence[Row], plan: Plan, runtime: Runtime) -> Score:
    """The score of the rows, on every rank. Raises UserError where there is nothing to score."""
    windows = Windows(rows, seq_len=plan.seq_len, stride=plan.stride, eod_id=tokenizer.eod_id)
    count = min(len(windows), plan.limit or len(windows))
    if not count:
        raise UserError("the data has no tokens", rule="a measure is taken over one token or more",
                        fix="give a file with text, or a split that holds some")  # fmt: skip
    firsts = range(0, count, plan.batch_size)
    sums = {}
    with count_bar("evaluate", len(firsts), enabled=runtime.is_main) as advance:
        for number in range(runtime.rank, len(firsts), runtime.world_size):
            size = min(plan.batch_size, count - firsts[number])
            sums[number] = _sums(model, tokenizer, windows, firsts[number], size, plan, runtime.device)
            advance(runtime.world_size)
    of_ranks = runtime.gather(sums)
    ordered = [of_ranks[number % runtime.world_size][number] for number in range(len(firsts))]
    tokens, n_bytes, nats, text_nats = (math.fsum(column) for column in zip(*ordered, strict=True))
    bits_per_byte = text_nats / math.log(2) / n_bytes if n_bytes else math.nan
    return Score(int(tokens), int(n_bytes), nats / tokens, _exp(nats / tokens), bits_per_byte, count,
                 plan.seq_len, plan.stride)  # fmt: skip


def _sums(
    model: GPT, tokenizer: Tokenizer, windows: Windows, first: int, size: int, plan: Plan, device: torch.device
) -> tuple[int, int, float, float]:
    """Of a batch: tokens, bytes, -log p of all tokens, and of those that stand for text; in nats."""
    tokens, targets = (x.to(device) for x in windows.batch(first, size))
    documents = document_numbers(tokens, tokenizer.eod_id) if plan.reset_at_document else None
    found, _ = log_likelihood(model, tokens, targets, documents)
    scored = targets != IGNORE
    nats, n_bytes = -found[scored].cpu().numpy(), tokenizer.text_bytes[targets[scored].cpu().numpy()]
    return len(nats), int(n_bytes.sum()), float(nats.sum()), float(nats[n_bytes > 0].sum())


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def open_data(path: Path, split: Split, field: str, tokenizer: Tokenizer) -> list[Row]:
    """The rows of a prepared folder, or of a text, JSONL or Parquet file: one for each source, or each document.

    Raises UserError for data that cannot be read, or that another tokenizer prepared.
    """
    if path.is_dir() or (path / INDEX_FILE).exists():
        data = open_split(path, split, verify=False)
        data.check_tokenizer(tokenizer)
        return [Stream(source) for source in data.sources if source.n_tokens]
    if not path.is_file() or not file_format(path):
        raise UserError(f"data '{path}' is neither a prepared folder nor a file that can be read",
                        rule=f"a folder of `dgpt prepare`, or a file of {', '.join(SUFFIXES)}, also .gz and .zst",
                        fix="correct the path, or rename the file")  # fmt: skip
    reader = reader_for(str(path), SourceConfig(path=str(path), field=field))
    texts = (text for block in reader.blocks(path, BLOCK_BYTES) for text in reader.documents(block))
    ids = [np.array(tokenizer.encode(text), np.int64) for text in texts]
    return sorted((Text(i) for i in ids if len(i)), key=lambda row: -row.n_tokens)  # alike lengths share a batch
