"""What a prepared folder holds, for people: counts, lengths of documents, texts; and the check of every checksum."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from dgpt.data.shards import SourceTokens, Split, check_sizes, open_split, read_index
from dgpt.data.tokenizer import Tokenizer, load_tokenizer
from dgpt.data.verify import verify_changed

BAR = 40  # characters of the longest bar
SPLITS: tuple[Split, Split] = ("train", "val")


def inspect(path: str | Path, *, console: Console, samples: int = 3, sample_tokens: int = 200) -> None:
    """Print counts, a histogram of document lengths, and the starts of some documents, decoded."""
    path = Path(path)
    tokenizer = load_tokenizer(path)
    console.print(summary(path))
    for split in SPLITS:
        data = open_split(path, split)
        data.check_tokenizer(tokenizer)
        for source in data.sources:
            if source.n_documents:
                console.print(_histogram(f"{source.name}, {split}: length of documents, in tokens", _lengths(source)))
        if split == "train":
            console.print(Group(*_texts(data.sources, tokenizer, samples, sample_tokens)))


def verify(path: str | Path, *, console: Console) -> None:
    """Hash every file. Raises UserError with file, expected and found hash for the first that differs."""
    path = Path(path)
    index = read_index(path)
    check_sizes(path, index)
    with Progress(console=console) as progress:
        task = progress.add_task("hashing", total=sum(record["bytes"] for record in index["files"].values()))
        count = verify_changed(path, index["files"], every=True, progress=lambda n: progress.advance(task, n))
    console.print(f"{path}: all {count} files have the sha256 that {path / 'index.json'} gives")


def summary(path: Path) -> RenderableType:
    """Tokens and documents by source and split."""
    index = read_index(path)
    meta = index["tokenizer"]
    title = f"{path}: {index['dtype']} tokens of {meta['vocab_size']} ids, tokenizer {meta['hash'][:12]}"
    table = Table(title=title, title_justify="left")
    for name in ("source", "split", "documents", "tokens", "shards", "text MB", "bytes per token"):
        table.add_column(name, justify="left" if name in ("source", "split") else "right")
    for source in index["sources"]:
        for split in SPLITS:
            table.add_row(*_row(source, split))
    return table


def _row(source: dict[str, Any], split: str) -> list[str]:
    entry = source["splits"][split]
    all_tokens = sum(other["tokens"] for other in source["splits"].values())
    texts = [f"{source['text_bytes'] / 1e6:,.1f}", f"{source['text_bytes'] / max(1, all_tokens):.2f}"]
    counts = [f"{entry['documents']:,}", f"{entry['tokens']:,}", f"{len(entry['shards'])}"]
    return [source["name"] if split == "train" else "", split, *counts, *(texts if split == "train" else ("", ""))]


def _lengths(source: SourceTokens) -> NDArray[np.int64]:
    starts = source.document_starts.astype(np.int64)
    return np.diff(starts, append=source.n_tokens)


def _histogram(title: str, lengths: NDArray[np.int64]) -> Table:
    """Bars of documents by length, each bin twice as wide as the one before."""
    bins = np.frexp(lengths.astype(np.float64))[1]  # 2^(b-1) <= length < 2^b
    counts = np.bincount(bins)
    table = Table(title=f"{title} (median {int(np.median(lengths)):,}, longest {lengths.max():,})", box=None,
                  title_justify="left", show_header=False)  # fmt: skip
    table.add_column(justify="right")
    for b in range(int(bins.min()), int(bins.max()) + 1):
        bar = "█" * -(-BAR * int(counts[b]) // int(counts.max()))
        table.add_row(f"{2 ** (b - 1):,} to {2**b - 1:,}", f"{bar} {counts[b]:,}")
    return table


def _texts(sources: Sequence[SourceTokens], tokenizer: Tokenizer, count: int, tokens: int) -> list[Panel]:
    panels = []
    for source in sources:
        starts = source.document_starts.astype(np.int64)
        for number in np.unique(np.linspace(0, len(starts) - 1, min(count, len(starts)), dtype=np.int64)).tolist():
            length = min(tokens, source.n_tokens - int(starts[number]))
            text = tokenizer.decode(source.gather(starts[number : number + 1], length)[0].tolist())
            panels.append(Panel(Text(text), title=f"{source.name}, document {number:,}", title_align="left"))
    return panels
