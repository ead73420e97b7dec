"""Tiny prepared data for tests of whole runs, made once."""

import random
from pathlib import Path

import pytest
from rich.console import Console

from dgpt.config import parse_config
from dgpt.data.prepare import prepare

WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in ("a", "e", "io", "ou") for c in ("", "s", "ren", "_x", "12")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have measured."""
    for report in terminalreporter.getreports("passed"):
        for name, line in report.user_properties if report.when == "call" else ():
            if name == "figure":
                terminalreporter.write_line(str(line))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 200 documents and 300 token ids, in shards of 4,000 tokens; tests must not change it."""
    folder, rng = tmp_path_factory.mktemp("tiny"), random.Random(0)
    for number in range(200):
        words = (rng.choice(WORDS) + rng.choice(("\n", " ", " ", " ", "  ", ", ")) for _ in range(60))
        (folder / f"{number:03}.txt").write_text("".join(words), encoding="utf-8")
    data = {"path": str(folder / "data"), "sources": [{"path": str(folder)}], "num_workers": 1, "shard_tokens": 4000,
            "val_fraction": 0.1}  # fmt: skip
    config = parse_config({"data": data, "tokenizer": {"vocab_size": 300}}, "the tests")
    prepare(config, console=Console(quiet=True))
    return folder / "data"
