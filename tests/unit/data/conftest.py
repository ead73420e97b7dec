"""A small corpus, and prepared folders made from it."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dgpt.config import RunConfig, parse_config
from dgpt.data.prepare import prepare
from dgpt.data.tokenizer import Tokenizer
from dgpt.data.tokenizer_training import train_tokenizer

WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in ("a", "e", "io", "ou") for c in ("", "s", "ren", "_x", "12")]


class Corpus:
    """Functions that tests make their data with."""

    @staticmethod
    def texts(count: int, seed: int = 0, words: int = 60) -> list[str]:
        """Documents that read like code: lines of words with indentation, tabs and other signs."""
        rng = random.Random(seed)
        signs = ["\n", "\n    ", "  ", "\t", " (", ") = ", " é", " 日本", "▁", " <|endoftext|> "]
        return ["".join(rng.choice(WORDS) + (rng.choice(signs) if rng.random() < 0.3 else " ") for _ in range(words))
                for _ in range(count)]  # fmt: skip

    @staticmethod
    def jsonl(path: Path, texts: list[str]) -> Path:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return path

    @staticmethod
    def config(path: Path, sources: list[dict[str, Any]], **data: Any) -> RunConfig:
        tokenizer = {"vocab_size": 400, "train_bytes": 100_000}
        values = {"data": {"path": str(path), "sources": sources, "num_workers": 1, **data}, "tokenizer": tokenizer}
        return parse_config(values, "test")

    @staticmethod
    def prepare(config: RunConfig) -> Path:
        prepare(config, console=Console(quiet=True))
        return Path(config.data.path)


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return Corpus()


@pytest.fixture(scope="session")
def texts(corpus: Corpus) -> list[str]:
    return corpus.texts(200)


@pytest.fixture(scope="session")
def bpe(texts: list[str]) -> Tokenizer:
    return train_tokenizer(parse_config({"tokenizer": {"vocab_size": 500}}, "test").tokenizer, texts)


@pytest.fixture(scope="session")
def prepared(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, list[list[str]]]:
    """A folder with two sources of 300 and 100 documents in shards of 1,000 tokens; tests must not change it."""
    folder = tmp_path_factory.mktemp("prepared")
    texts = [corpus.texts(300, 1), corpus.texts(100, 2)]
    files = [
        corpus.jsonl(folder / name, of_source) for name, of_source in zip(("a.jsonl", "b.jsonl"), texts, strict=True)
    ]
    config = corpus.config(
        folder / "data", [{"path": str(file)} for file in files], shard_tokens=1000, val_fraction=0.1
    )
    corpus.prepare(config)
    return config, texts


@pytest.fixture
def copied(prepared: tuple[RunConfig, list[list[str]]], tmp_path: Path) -> Path:
    """A copy of the prepared folder that a test may break."""
    return Path(shutil.copytree(prepared[0].data.path, tmp_path / "copy"))
