"""Text from a model: batched prompts of any lengths, several samples of each, whole or as it comes."""

import itertools
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from dgpt.errors import UserError
from dgpt.model.decode import Reason, Sample, decode
from dgpt.model.gpt import GPT
from dgpt.model.sampling import Sampling
from dgpt.model.text_stream import TextStream

MOST = 10**6  # samples, or sequences at once

Prompt = str | Sequence[int]  # text, or its token ids


@dataclass(frozen=True)
class Completion:
    """One continuation as text, without the prompt and without the stop string."""

    prompt: Prompt
    text: str
    reason: Reason


class TextTokenizer(Protocol):
    """What `generate_texts` needs of a tokenizer."""

    @property
    def eod_id(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def unreachable(self) -> Collection[int]: ...  # ids that stand for no text
    def encode(self, text: str, /) -> list[int]: ...
    def decode(self, tokens: Sequence[int], /) -> str: ...


def generate_texts(
    model: GPT,
    tokenizer: TextTokenizer,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    samples: int = 1,
    stop_strings: Sequence[str] = (),
    batch_size: int = 64,
) -> Iterator[Completion]:
    """Yield `samples` continuations of each prompt, in order; a text ends before the first stop string in it.

    An empty prompt starts a new document. Raises UserError as `generate`, and for a tokenizer of another model.
    """
    streams: list[TextStream] = []

    def watch() -> Callable[[int], bool]:
        streams.append(TextStream(tokenizer.decode, stop_strings))
        return streams[-1].add

    check_texts(model, tokenizer, stop_strings)
    results = generate(
        model, [encode_prompt(tokenizer, prompt) for prompt in prompts], sampling, samples=samples,
        vocab_size=tokenizer.vocab_size, never=tokenizer.unreachable, stop_ids=(tokenizer.eod_id,), watch=watch,
        batch_size=batch_size,
    )  # fmt: skip
    named = (prompt for prompt in prompts for _ in range(samples))
    for prompt, result, stream in zip(named, results, streams, strict=True):
        yield Completion(prompt, stream.finish(), result.reason)


def stream_text(
    model: GPT,
    tokenizer: TextTokenizer,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    number: int = 0,
    stop_strings: Sequence[str] = (),
) -> Generator[str, None, Reason]:
    """Yield the text of sample `number` of a prompt piece by piece as it comes; returns why it ended.

    The pieces are what `generate_texts` gives as a whole. Raises as that, before the first piece.
    """
    check_texts(model, tokenizer, stop_strings)
    check_prompt("the prompt", prompt, model.config.seq_len, tokenizer.vocab_size)
    stream, done = TextStream(tokenizer.decode, stop_strings), 0
    sample = Sample(prompt, number, watch=stream.add)
    vocab_size, never = tokenizer.vocab_size, tokenizer.unreachable
    for _ in decode(model, [sample], sampling, vocab_size, (tokenizer.eod_id,), never):
        if stream.shown > done:
            yield stream.text[done : stream.shown]
            done = stream.shown
    if rest := stream.finish()[done:]:
        yield rest
    return sample.reason


def encode_prompt(tokenizer: TextTokenizer, prompt: Prompt) -> Sequence[int]:
    """Token ids; an empty text starts a new document."""
    return (tokenizer.encode(prompt) if isinstance(prompt, str) else prompt) or [tokenizer.eod_id]


def check_texts(model: GPT, tokenizer: TextTokenizer, stop_strings: Sequence[str]) -> None:
    """Raise UserError for a tokenizer of another model, or an empty stop string."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}",
                        rule="a model reads the tokens of the tokenizer that it was trained with",
                        fix="give the tokenizer of the model's run")  # fmt: skip
    if "" in stop_strings:
        raise UserError("stop string '' is empty", rule="a stop string has a character or more", fix="leave it out")


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    samples: int = 1,
    vocab_size: int = 0,
    never: Collection[int] = (),
    stop_ids: Collection[int] = (),
    watch: Callable[[], Callable[[int], bool]] | None = None,
    batch_size: int = 64,
) -> Iterator[Sample]:
    """Continue each prompt `samples` times; an iterator in the order of prompts, each batch as it is done.

    A sample is a function of the model, its prompt, its number and `sampling`; batch neighbours do not matter. It ends
    at a token in `stop_ids`, when what `watch()` made for it, given each new token, says so, after max_new_tokens, or
    when prompt and new tokens fill the model's seq_len. Tokens from `vocab_size` on (0: the model's; behind it are
    rows of padding) are never drawn, nor those in `never`. Raises UserError, before the first forward pass, for an
    empty prompt, one that fills seq_len, or one with a token that the model does not know.
    """
    vocab_size = vocab_size or model.config.vocab_size
    check_count("samples", samples)
    check_count("batch_size", batch_size)
    for number, prompt in enumerate(prompts, start=1):
        check_prompt(f"prompt {number} of {len(prompts)}", prompt, model.config.seq_len, vocab_size)
    results = [Sample(prompt, number, watch=watch() if watch else None)
               for prompt in prompts for number in range(samples)]  # fmt: skip

    def complete(batch: list[Sample]) -> list[Sample]:
        for _ in decode(model, batch, sampling, vocab_size, stop_ids, never):
            pass
        return batch

    batches = (results[at : at + batch_size] for at in range(0, len(results), batch_size))
    return itertools.chain.from_iterable(map(complete, batches))


def check_count(name: str, count: int) -> None:
    """Raise UserError for a number that nobody means."""
    if not 1 <= count <= MOST:
        raise UserError(f"{name} = {count} cannot be used", rule=f"{name} is from 1 to {MOST:,}",
                        fix=f"set {name} to 1")  # fmt: skip


def check_prompt(name: str, prompt: Sequence[int], seq_len: int, vocab_size: int) -> None:
    """Raise UserError, which begins with `name`, for a prompt that cannot be continued."""
    if not prompt:
        raise UserError(f"{name} is empty", rule="a prompt has a token or more",
                        fix="begin it with the end-of-document token")  # fmt: skip
    if len(prompt) >= seq_len:
        raise UserError(f"{name} has {len(prompt)} tokens and the model's seq_len is {seq_len}",
                        rule="a prompt is shorter than seq_len, so that a new token fits behind it",
                        fix=f"shorten the prompt to {seq_len - 1} tokens")  # fmt: skip
    if unknown := [token for token in prompt if not 0 <= token < vocab_size]:
        raise UserError(f"{name} has the token {unknown[0]}", rule=f"tokens lie between 0 and {vocab_size - 1}",
                        fix="encode it with the model's own tokenizer")  # fmt: skip
