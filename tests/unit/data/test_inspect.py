"""What people see of prepared data agrees with what is there."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from dgpt.config import RunConfig
from dgpt.data.inspect import inspect, verify
from dgpt.data.shards import open_split
from dgpt.errors import UserError


def printed(show: Callable[..., None], path: str | Path, **options: int) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=200, file=nowhere)
        show(path, console=console, **options)
    return console.export_text()


def test_inspect_shows_counts_lengths_and_texts(prepared: tuple[RunConfig, list[list[str]]]) -> None:
    config, texts = prepared
    out = printed(inspect, config.data.path, samples=1000, sample_tokens=60)
    for split in ("train", "val"):
        for source in open_split(config.data.path, split).sources:
            assert f"{source.n_documents:,}" in out
            assert f"{source.n_tokens:,}" in out
            assert f"{source.name}, {split}: length of documents" in out
    shown = [text for of_source in texts for text in of_source if text[:12].split("\n")[0] in out]
    assert len(shown) > 300


def test_verify_hashes_everything(copied: Path) -> None:
    assert "files have the sha256" in printed(verify, copied)
    shard = copied / "a" / "val_00000.bin"
    times = shard.stat()
    data = bytearray(shard.read_bytes())
    data[0] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))  # a disk that decays changes no times
    open_split(copied, "val")
    with pytest.raises(
        UserError, match=r"val_00000.bin' is corrupted: expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}"
    ):
        printed(verify, copied)
