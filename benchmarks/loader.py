"""Tokens per second of the data loader on one core: `python -m benchmarks.loader`.

Makes a folder of random token shards in a temporary directory and reads batches from it as training does. The bar is 50
million tokens/s. Samples are random windows of a corpus that fits the page cache: what is measured is dgpt's own work,
not the disk's. Time is CPU time of this one thread, which others on the machine do not change much.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dgpt.config import BatchPlan
from dgpt.data.loader import Loader
from dgpt.data.shards import FORMAT, VERSION, open_split

SHARD_TOKENS = 16_000_000
BAR = 50e6  # tokens/s


def write_shards(folder: Path, dtype: str, shards: int) -> None:
    """A prepared folder of one source with random tokens; 1 in 1,000 ends a document."""
    entries, files = [], {}
    for number in range(shards):
        entry = {"file": f"train_{number:05d}.bin", "documents_file": f"train_{number:05d}.docs",
                 "tokens": SHARD_TOKENS, "documents": 0}  # fmt: skip
        np.random.default_rng(number).integers(0, 1000, SHARD_TOKENS).astype(dtype).tofile(folder / str(entry["file"]))
        (folder / str(entry["documents_file"])).touch()
        entries.append(entry)
        files[entry["file"]] = {"bytes": SHARD_TOKENS * np.dtype(dtype).itemsize, "sha256": ""}
    splits = {"train": {"tokens": shards * SHARD_TOKENS, "documents": 0, "shards": entries}}
    index = {"format": FORMAT, "version": VERSION, "dtype": dtype, "shard_tokens": SHARD_TOKENS, "files": files,
             "tokenizer": {"vocab_size": 1000, "eod_id": 0, "hash": ""},
             "sources": [{"name": "random", "splits": splits}]}  # fmt: skip
    (folder / "index.json").write_text(json.dumps(index))


def measure(folder: Path, plan: BatchPlan, seq_len: int, seconds: float, *, reset_at_document: bool) -> float:
    """Tokens per second of one rank."""
    data = open_split(folder, "train", verify=False)
    loader = Loader(data, seq_len=seq_len, seed=0, plan=plan, dp_rank=0, reset_at_document=reset_at_document)
    for batch in loader.step(0):
        assert batch.tokens.shape == (plan.micro_batch_size, seq_len)
    start, tokens, step = time.process_time(), 0, 0
    while time.process_time() - start < seconds:
        step += 1
        tokens += sum(batch.tokens.numel() for batch in loader.step(step))
    return tokens / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--shards", type=int, default=4, help=f"of {SHARD_TOKENS:,} tokens")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print("dtype   T      B   grad_accum  documents   M tokens/s   x bar of 50")
    for dtype in ("uint16", "uint32"):
        with tempfile.TemporaryDirectory() as name:
            write_shards(Path(name), dtype, options.shards)
            for seq_len, micro, accum, reset in ((256, 8, 1, False), (1024, 8, 8, False), (2048, 16, 4, False),
                                                 (8192, 2, 4, False), (1024, 8, 8, True)):  # fmt: skip
                plan = BatchPlan(micro * accum, micro, accum, 1)
                rate = measure(Path(name), plan, seq_len, options.seconds, reset_at_document=reset)
                print(
                    f"{dtype}  {seq_len:<6} {micro:<3} {accum:<11} {reset!s:<11} {rate / 1e6:10.1f}   {rate / BAR:.1f}"
                )


if __name__ == "__main__":
    main()
