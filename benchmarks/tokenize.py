"""Tokenisation of `dgpt prepare` against one core of `sentencepiece`: run it as `python -m benchmarks.tokenize`.

The text is Python source of this environment, as JSONL. In turn, A B A B ...: (A) one core of `sentencepiece.encode`
on the whole documents, in memory; (B) what `dgpt prepare` does with them on all cores: start the processes, read,
decode, hash, encode, write and flush unit files. The bar is B >= 0.9 x cores x A.

"by wall" is that, and needs a machine that does nothing else. "by CPU" compares CPU seconds per byte, processes and
all: the same number where nobody has to wait for a core, and one that still means something where they do.
"""

import argparse
import json
import os
import shutil
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import sentencepiece
from rich.console import Console

from dgpt.config import RunConfig, parse_config
from dgpt.data.preparation import Preparation, find_preparation, start_or_continue
from dgpt.data.tokenizer_training import even_sample, train_tokenizer
from dgpt.data.work import tokenise_units

BAR = 0.9


def real_text(megabytes: float) -> list[str]:
    """Source files of the packages of this environment, no file twice, up to so many megabytes."""
    texts: dict[str, int] = {}
    size = 0
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if size < megabytes * 1e6 and text not in texts:
            texts[text] = len(text.encode())
            size += texts[text]
    return list(texts)


def clocks() -> np.ndarray:
    """Seconds of wall time, and of CPU time of this process and its children that have ended."""
    spent = os.times()
    return np.array([time.perf_counter(), spent.user + spent.system + spent.children_user + spent.children_system])


def one_core(model: bytes, texts: list[str]) -> np.ndarray:
    """Seconds (wall, CPU) that sentencepiece takes on one core."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    start = clocks()
    processor.encode(texts, num_threads=1)
    return clocks() - start


def all_cores(config: RunConfig, tokenizer_folder: Path) -> np.ndarray:
    """Seconds (wall, CPU) that dgpt takes from text files to unit files, processes and all."""
    job: Preparation = find_preparation(config)
    start_or_continue(job)
    for file in tokenizer_folder.iterdir():
        shutil.copy(file, job.work)
    start = clocks()
    tokenise_units(job, Console(quiet=True))
    seconds = clocks() - start
    shutil.rmtree(job.folder)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="turns of A and B")
    parser.add_argument("--megabytes", type=float, default=60, help="of text; less, and starting the processes counts")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--model-type", choices=("bpe", "unigram"), default="bpe")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = real_text(options.megabytes)
        file = folder / "text.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        data = {"path": str(folder / "data"), "sources": [{"path": str(file)}], "num_workers": cores}
        settings = {"vocab_size": options.vocab_size, "model_type": options.model_type}
        config = parse_config({"data": data, "tokenizer": settings}, "the benchmark")
        tokenizer = train_tokenizer(config.tokenizer, even_sample(texts, config.tokenizer.train_bytes))
        (folder / "tokenizer").mkdir()
        model = (folder / "tokenizer" / tokenizer.save(folder / "tokenizer")[0]).read_bytes()
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        print(f"{megabytes:.1f} MB, {options.model_type} of {options.vocab_size}, {cores} cores")
        print("turn   sentencepiece, 1 core   dgpt prepare, all cores   ratio by wall   by CPU")
        ratios = []
        for turn in range(options.repeats):
            one, every = one_core(model, texts), all_cores(config, folder / "tokenizer")
            ratios.append(one / every / [cores, 1])
            wall, cpu = ratios[-1]
            rates = f"{megabytes / one[0]:12.2f} MB/s       {megabytes / every[0]:12.2f} MB/s      "
            print(f"{turn:4}   {rates} {wall:10.2f}   {cpu:10.2f}", flush=True)
        wall, cpu = np.median(ratios, axis=0)
        print(f"median ratio to cores x sentencepiece: {wall:.2f} by wall, {cpu:.2f} by CPU; the bar is {BAR}")


if __name__ == "__main__":
    main()
