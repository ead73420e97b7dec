"""Text from a model: batched prompts of any lengths, several samples of each, with a key/value cache.

B sequences, T tokens of the longest prompt, C n_embd, V vocabulary
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from dgpt.errors import UserError
from dgpt.model.cache import KVCache
from dgpt.model.gpt import GPT
from dgpt.model.sampling import Sampling, choose, random_numbers

Reason = Literal["", "stop", "length", "context"]


@dataclass
class Sample:
    """One continuation of one prompt."""

    prompt: Sequence[int]
    number: int  # among the samples of its prompt, from 0
    tokens: list[int] = field(default_factory=list)  # new ones, without the stop id
    reason: Reason = ""  # why it ended: a stop id or stop(), max_new_tokens, or the context is full


@dataclass(frozen=True)
class Completion:
    """One continuation as text, without the prompt and without the stop string."""

    prompt: str
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
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    samples: int = 1,
    stop_strings: Sequence[str] = (),
    batch_size: int = 64,
) -> Iterator[Completion]:
    """Yield `samples` continuations of each prompt, in order; a text ends before the first stop string in it.

    An empty prompt starts a new document. Raises UserError as `generate`, and for a tokenizer of another model.
    """
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}",
                        rule="a model reads the tokens of the tokenizer that it was trained with",
                        fix="give the tokenizer of the model's run")  # fmt: skip
    if "" in stop_strings:
        raise UserError("stop string '' is empty", rule="a stop string has a character or more", fix="leave it out")

    def text(prompt: Sequence[int], tokens: list[int]) -> str:
        """New text. Decoded behind the prompt, for a tokenizer may treat the first token of a text differently."""
        return tokenizer.decode([*prompt, *tokens])[len(tokenizer.decode(prompt)) :]

    def stop(sample: Sample) -> bool:
        return bool(stop_strings) and _cut(text(sample.prompt, sample.tokens), stop_strings)[1]

    encoded = [tokenizer.encode(prompt) or [tokenizer.eod_id] for prompt in prompts]
    results = generate(
        model, encoded, sampling, samples=samples, vocab_size=tokenizer.vocab_size, never=tokenizer.unreachable,
        stop_ids=(tokenizer.eod_id,), stop=stop, batch_size=batch_size,
    )  # fmt: skip
    named = (prompt for prompt in prompts for _ in range(samples))
    for prompt, result in zip(named, results, strict=True):
        yield Completion(prompt, _cut(text(result.prompt, result.tokens), stop_strings)[0], result.reason)


def _cut(text: str, stop_strings: Sequence[str]) -> tuple[str, bool]:
    """`text` up to the first stop string, and whether there was one."""
    ends = [at for at in map(text.find, stop_strings) if at >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    samples: int = 1,
    vocab_size: int = 0,
    never: Collection[int] = (),
    stop_ids: Collection[int] = (),
    stop: Callable[[Sample], bool] | None = None,
    batch_size: int = 64,
) -> Iterator[Sample]:
    """Continue each prompt `samples` times; an iterator in the order of prompts, each batch as it is done.

    A sample is a function of the model, its prompt, its number and `sampling`; batch neighbours do not matter. It ends
    at a token in `stop_ids`, when `stop(sample)` (asked after each token) says so, after max_new_tokens, or when
    prompt and new tokens fill the model's seq_len. Tokens from `vocab_size` on (0: the model's; behind it are rows of
    padding) are never drawn, nor those in `never`. Raises UserError, before the first forward pass, for an empty
    prompt, one that fills seq_len, or one with a token that the model does not know.
    """
    vocab_size = vocab_size or model.config.vocab_size
    for name, count in (("samples", samples), ("batch_size", batch_size)):
        if count < 1:
            raise UserError(f"{name} = {count} cannot be used", rule=f"{name} is at least 1", fix=f"set {name} to 1")
    for number, prompt in enumerate(prompts, start=1):
        _check(f"prompt {number} of {len(prompts)}", prompt, model.config.seq_len, vocab_size)
    results = [Sample(prompt, number) for prompt in prompts for number in range(samples)]

    def end(sample: Sample, token: int) -> Reason:
        """Take one more token and say whether the sample ends with it."""
        if token in stop_ids:
            return "stop"
        sample.tokens.append(token)
        if stop is not None and stop(sample):
            return "stop"
        if len(sample.tokens) == sampling.max_new_tokens:
            return "length"
        return "context" if len(sample.prompt) + len(sample.tokens) >= model.config.seq_len else ""

    allowed = torch.ones(vocab_size, dtype=torch.bool)
    allowed[list(never)] = False
    allowed = allowed.to(model.wte.weight.device)
    batches = (results[at : at + batch_size] for at in range(0, len(results), batch_size))
    return itertools.chain.from_iterable(_generate_batch(model, batch, sampling, allowed, end) for batch in batches)


def _check(name: str, prompt: Sequence[int], seq_len: int, vocab_size: int) -> None:
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


@torch.no_grad()
def _generate_batch(
    model: GPT, batch: list[Sample], sampling: Sampling, allowed: Tensor, end: Callable[[Sample, int], Reason]
) -> list[Sample]:
    """Complete the samples of `batch` together."""
    device = model.wte.weight.device
    lengths = [len(sample.prompt) for sample in batch]
    room = min(model.config.seq_len, max(lengths) + sampling.max_new_tokens)
    cache = KVCache(model.config.n_layer, len(batch), room, device)
    tokens = torch.tensor([[*s.prompt, *[0] * (max(lengths) - len(s.prompt))] for s in batch], device=device)  # (B, T)
    draws = torch.stack([random_numbers(sampling.seed, s.prompt, s.number, sampling.max_new_tokens) for s in batch])
    draws, active = draws.to(device), batch
    with _evaluating(model):
        x = model.hidden(tokens, cache=cache)[range(len(batch)), [n - 1 for n in lengths]]  # (B, C), of the last tokens
        cache.advance(lengths)
        for step in range(sampling.max_new_tokens):
            chosen = _next(model, x, draws[:, step], sampling, allowed)
            for sample, token in zip(active, chosen, strict=True):
                sample.reason = end(sample, token)
            going = [row for row, sample in enumerate(active) if not sample.reason]
            if not going:
                break
            if len(going) < len(active):  # those that ended leave the batch
                cache.keep(going)
                active, draws = [active[row] for row in going], draws[going]
            x = model.hidden(torch.tensor([[chosen[row]] for row in going], device=device), cache=cache)[:, 0]
            cache.advance([1] * len(going))
    return batch


def _next(model: GPT, x: Tensor, draws: Tensor, sampling: Sampling, allowed: Tensor) -> list[int]:
    """The next tokens after final hidden states x (B, C), of those that are allowed (V,)."""
    logits = model.head(x[:, None])[:, 0, : len(allowed)]  # (B, V)
    return choose(logits.masked_fill(~allowed, float("-inf")), draws, sampling).tolist()


@contextmanager
def _evaluating(model: GPT) -> Iterator[None]:
    """Dropout off for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
