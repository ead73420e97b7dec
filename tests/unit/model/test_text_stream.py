"""Streamed text is the whole text, whatever characters and stop strings the tokens cut through."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgpt.config import ModelConfig
from dgpt.errors import UserError
from dgpt.model.generate import generate_texts, stream_text
from dgpt.model.gpt import GPT
from dgpt.model.init import build_model
from dgpt.model.sampling import Sampling
from dgpt.model.text_stream import TextStream


class Bytes:
    """A tokenizer of single bytes: a character beyond ASCII takes several tokens. 256 ends a document."""

    eod_id = 256
    vocab_size = 257
    unreachable = ()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode("utf-8", "replace")


def whole(data: bytes, stop_strings: Sequence[str]) -> str:
    """The definition."""
    text = data.decode("utf-8", "replace")
    return text[: min((at for at in map(text.find, stop_strings) if at >= 0), default=len(text))]


def pieces(stream: TextStream, data: bytes) -> list[str]:
    """What a reader sees after each token, and in the end."""
    seen, result = 0, []
    for token in data:
        stopped = stream.add(token)
        result.append(stream.text[seen : stream.shown])
        seen = stream.shown
        if stopped:
            break
    return [*result, stream.finish()[seen:]]


TEXTS = ["plain", "日本 🙂 Ünï", "a\ufffdb\ufffd", "xx\nxyx\n\nyxx\n"]
STOPS = [(), ("\n\n",), ("🙂", "xyz"), ("xy", "x\n", "\ufffd")]


@pytest.mark.parametrize("stop_strings", STOPS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_whole_text(text: str, stop_strings: tuple[str, ...]) -> None:
    assert "".join(pieces(TextStream(Bytes().decode, stop_strings), text.encode())) == whole(
        text.encode(), stop_strings
    )


@given(st.binary(max_size=30), st.lists(st.text("ab\ufffdé", min_size=1, max_size=3), max_size=3))
def test_so_they_are_of_any_bytes(data: bytes, stop_strings: list[str]) -> None:
    assert "".join(pieces(TextStream(Bytes().decode, stop_strings), data)) == whole(data, stop_strings)


def test_a_character_comes_with_its_last_byte_and_a_word_with_its_own() -> None:
    assert pieces(TextStream(Bytes().decode), "aé🙂b".encode()) == ["a", "", "é", "", "", "", "🙂", "b", ""]


def test_what_may_begin_a_stop_string_waits() -> None:
    stream = TextStream(Bytes().decode, ["\n<|", "b\n"])
    assert pieces(stream, b"a\n<b\nx") == ["a", "", "", "\n<", "", ""]
    assert stream.stopped


@pytest.fixture(scope="module")
def model() -> GPT:
    config = ModelConfig(n_layer=1, n_head=2, n_embd=16, seq_len=64, vocab_size=257, init_std=0.5)
    return build_model(config, seed=3, device=torch.device("cpu"))


@pytest.mark.parametrize("stop_strings", [(), ("e",), ("\ufffd\ufffd", "zq")])
@pytest.mark.parametrize("number", [0, 1])
def test_streamed_generation_is_whole_generation(model: GPT, number: int, stop_strings: tuple[str, ...]) -> None:
    sampling, tokenizer = Sampling(max_new_tokens=40, seed=5), Bytes()
    expected = list(generate_texts(model, tokenizer, ["é: "], sampling, samples=2, stop_strings=stop_strings))[number]
    stream = stream_text(model, tokenizer, tokenizer.encode("é: "), sampling, number=number, stop_strings=stop_strings)
    text, reason = run(stream)
    assert (text, reason) == (expected.text, expected.reason)


def run(stream: object) -> tuple[str, str]:
    parts = []
    advance: Callable[[], str] = stream.__next__  # type: ignore[attr-defined]
    while True:
        try:
            parts.append(advance())
        except StopIteration as end:
            return "".join(parts), end.value


def test_a_stream_refuses_what_whole_generation_refuses(model: GPT) -> None:
    for prompt, stop_strings, message in (([], (), "is empty"), ([1] * 64, (), "seq_len is 64"), ([1], ("",), "stop")):
        with pytest.raises(UserError, match=message):
            next(stream_text(model, Bytes(), prompt, Sampling(), stop_strings=stop_strings))
