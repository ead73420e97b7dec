"""`dgpt evaluate` against `transformers` on the same weights and texts, and against sums by hand."""

import json
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from dgpt.cli import main
from dgpt.data.shards import open_split
from dgpt.data.tokenizer import Tokenizer
from dgpt.data.windows import Text, Windows
from dgpt.evaluate import Plan, evaluate, open_data
from dgpt.generate import load_model
from dgpt.model.gpt import GPT
from dgpt.outcome import DONE, MISTAKE
from dgpt.runtime import Runtime

ALONE = Runtime(0, 0, 1, torch.device("cpu"))
TEXTS = ["ba fe\n" * 60, "日本 🙂", "dio " * 9, "x"]


@pytest.fixture(scope="module")
def ours(random_run: Path) -> tuple[GPT, Tokenizer]:
    return load_model(random_run)


@pytest.fixture(scope="module")
def theirs(ours: tuple[GPT, Tokenizer]) -> nn.Module:
    """The same weights in transformers; `test_parity` maps both shapes, this one is small enough to write out."""
    model, _ = ours
    c, state = model.config, model.state_dict()
    other = GPT2LMHeadModel(GPT2Config(vocab_size=c.padded_vocab_size, n_positions=c.seq_len, n_embd=c.n_embd,
                                       n_layer=c.n_layer, n_head=c.n_head))  # fmt: skip
    names = {"wte": "wte", "wpe": "wpe", "norm": "ln_f"}
    names |= {f"blocks.{i}.{a}": f"h.{i}.{b}" for i in range(c.n_layer)
              for a, b in (("norm1", "ln_1"), ("norm2", "ln_2"), ("attn.proj", "attn.c_proj"), ("mlp.up", "mlp.c_fc"),
                           ("mlp.down", "mlp.c_proj"))}  # fmt: skip
    target = other.transformer.state_dict()
    for mine, name in names.items():
        for part in ("weight", "bias"):
            if f"{mine}.{part}" in state:
                value = state[f"{mine}.{part}"]
                target[f"{name}.{part}"].copy_(value.mT if "c_" in name and part == "weight" else value)
    for i in range(c.n_layer):
        for part in ("weight", "bias"):
            qkv = torch.cat([state[f"blocks.{i}.attn.{n}.{part}"] for n in "qkv"])
            target[f"h.{i}.attn.c_attn.{part}"].copy_(qkv.mT if part == "weight" else qkv)
    return other.eval()


@torch.no_grad()
def reference(theirs: nn.Module, ids: list[int], eod_id: int, seq_len: int, stride: int) -> list[float]:
    """-log p of every token with the context that docs/evaluation.md promises it."""
    row, nats = [eod_id, *ids], []

    @lru_cache
    def log_p(start: int, stop: int) -> Tensor:
        return theirs(torch.tensor([row[start:stop]])).logits[0].log_softmax(-1)

    for place, token in enumerate(ids):
        later = 1 + (place - seq_len) // stride if place >= seq_len else 0  # windows after the first
        stop = min(seq_len + later * stride, len(ids))
        start = max(0, stop - seq_len)
        nats.append(-float(log_p(start, stop)[place - start, token]))
    return nats


@pytest.mark.parametrize(("seq_len", "stride"), [(96, 96), (96, 7), (20, 20), (20, 1), (33, 16)])
def test_loss_and_bits_are_those_of_transformers(
    ours: tuple[GPT, Tokenizer], theirs: nn.Module, seq_len: int, stride: int
) -> None:
    model, tokenizer = ours
    ids = [tokenizer.encode(text) for text in TEXTS]
    assert max(map(len, ids)) > 96
    rows = [Text(np.array(i)) for i in ids]
    score = evaluate(model, tokenizer, rows, Plan(seq_len, stride, batch_size=5), ALONE)
    nats = sum(sum(reference(theirs, i, tokenizer.eod_id, seq_len, stride)) for i in ids)
    assert score.tokens == sum(map(len, ids))
    assert score.loss == pytest.approx(nats / score.tokens, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(nats / score.tokens), rel=1e-4)
    assert score.bytes == sum(len(text.encode()) for text in TEXTS)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / score.bytes, rel=1e-5)


@pytest.mark.parametrize(("n_tokens", "seq_len", "stride"), [(1, 4, 4), (4, 4, 2), (5, 4, 4), (23, 4, 3), (40, 8, 1)])
def test_every_token_is_scored_once_with_the_promised_context(n_tokens: int, seq_len: int, stride: int) -> None:
    rows = [Text(np.arange(n_tokens)), Text(np.empty(0, np.int64)), Text(np.arange(n_tokens))]
    windows = Windows(rows, seq_len=seq_len, stride=stride, eod_id=99)
    scored = [(w.row, place) for w in map(windows.__getitem__, range(len(windows))) for place in range(w.first, w.stop)]
    assert scored == [(row, place) for row in (0, 2) for place in range(n_tokens)]
    for w in map(windows.__getitem__, range(len(windows))):
        assert w.stop - w.start <= seq_len
        for i, place in enumerate(range(w.first, w.stop)):
            context = place - w.start + 1  # the tokens from start - 1 on, with the one before the row
            assert context == (place + 1 if w.start == 0 else seq_len - (w.stop - w.first) + i + 1)
            assert w.start == 0 or context > seq_len - stride
    tokens, targets = windows.batch(0, 1)
    assert tokens[0].tolist() == [99, *range(min(seq_len, n_tokens) - 1)]
    assert targets[0].tolist() == list(range(min(seq_len, n_tokens)))


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert main(["evaluate", *map(str, arguments), "--json"]) == DONE
    result: dict[str, object] = json.loads(capsys.readouterr().out)
    return result


def test_the_split_of_the_run_with_bytes_by_hand(
    random_run: Path,
    tiny_data: Path,
    ours: tuple[GPT, Tokenizer],
    theirs: nn.Module,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ends of documents are tokens of the loss, and neither bytes nor bits of the text."""
    _, tokenizer = ours
    result = command(capsys, random_run, "--batch-size", 3)
    (source,) = open_split(tiny_data, "val").sources
    ids = source.gather(np.array([0]), source.n_tokens)[0].tolist()
    text = tokenizer.decode([i for i in ids if i != tokenizer.eod_id])
    nats = reference(theirs, ids, tokenizer.eod_id, 96, 96)
    of_text = sum(n for n, i in zip(nats, ids, strict=True) if i != tokenizer.eod_id)
    assert result["data"] == str(tiny_data)
    assert (result["split"], result["step"], result["tokens"]) == ("val", 1, len(ids))
    assert result["bytes"] == len(text.encode())
    assert result["loss"] == pytest.approx(sum(nats) / len(ids), rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(of_text / math.log(2) / len(text.encode()), rel=1e-5)
    part = command(capsys, random_run, tiny_data, "--split", "train", "--limit", 2)
    assert (part["windows"], part["tokens"]) == (2, 192)


def test_text_and_jsonl_files(random_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of text is one document; of JSONL, each line is one: none sees another."""
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in TEXTS))
    together = command(capsys, random_run, tmp_path / "a.jsonl", "--field", "body", "--stride", 50)
    alone = []
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
        alone.append(command(capsys, random_run, tmp_path / f"{number}.txt", "--stride", 50))
    assert together["tokens"] == sum(part["tokens"] for part in alone)  # type: ignore[misc]
    nats = sum(part["loss"] * part["tokens"] for part in alone)  # type: ignore[operator]
    assert together["loss"] == pytest.approx(nats / together["tokens"], rel=1e-6)  # type: ignore[operator]


def test_a_table_for_people(random_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(random_run), "--limit", "1"]) == DONE
    table = capsys.readouterr().out
    assert all(name in table for name in ("loss", "perplexity", "bits_per_byte", "step_00000001"))


def test_documents_that_are_apart_in_training_are_apart_here(ours: tuple[GPT, Tokenizer]) -> None:
    """With data.reset_at_document the loss is that of training, where no document sees another."""
    model, tokenizer = ours
    ids = [i for text in TEXTS[:3] for i in (*tokenizer.encode(text)[:20], tokenizer.eod_id)]
    tokens, documents, number = [tokenizer.eod_id, *ids[:-1]], [], 0
    for token in tokens:
        documents.append(number)
        number += token == tokenizer.eod_id
    loss = model(*(torch.tensor([x]) for x in (tokens, ids, documents)))
    score, other = (evaluate(model, tokenizer, [Text(np.array(ids))], Plan(96, 96, 1, reset_at_document=reset), ALONE)
                    for reset in (True, False))  # fmt: skip
    assert score.loss == pytest.approx(loss.item(), rel=1e-6)
    assert other.loss != pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing.txt"], "neither a prepared folder nor a file"),
        (["--stride", "97"], "--stride = 97 with windows of 96 tokens"),
        (["--seq-len", "97"], "--seq-len = 97"),
        (["--num-fewshot", "1"], "--num-fewshot = '1' without --lm-eval"),
        (["--lm-eval", "x", "--stride", "3"], "--stride = '3' with --lm-eval"),
    ],
)
def test_bad_wishes(random_run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(random_run), *options]) == MISTAKE
    assert message in capsys.readouterr().err


def test_an_empty_file_has_no_loss(random_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    assert main(["evaluate", str(random_run), str(tmp_path / "a.jsonl")]) == MISTAKE
    assert "the data has no tokens" in capsys.readouterr().err


def test_rows_of_a_file_are_its_documents(ours: tuple[GPT, Tokenizer], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0])
    (row,) = open_data(tmp_path / "a.txt", "val", "text", ours[1])
    assert row.read(0, row.n_tokens).tolist() == ours[1].encode(TEXTS[0])
