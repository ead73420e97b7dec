"""Training of a SentencePiece model on an even sample of the documents."""

import heapq
import io
import re
from collections.abc import Iterable, Iterator

from dgpt.config import TokenizerConfig
from dgpt.config.data import SMALLEST_VOCAB
from dgpt.data.blocks import document_key
from dgpt.data.tokenizer import SPACE, Tokenizer, build
from dgpt.errors import UserError

LINE_CHARACTERS = 10_000  # longer lines are cut: the trainer holds one word of a line at a time, not all of it
UNKNOWN_MARK = "\u2585"  # SentencePiece skips sentences with it


def train_tokenizer(config: TokenizerConfig, sample: Iterable[str]) -> Tokenizer:
    """Train on `sample`. The result depends on the texts and the settings, not on the machine.

    Raises UserError where the text cannot carry tokenizer.vocab_size pieces.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(sample), model_writer=model, model_type=config.model_type,
            vocab_size=config.vocab_size, byte_fallback=True, character_coverage=0.9995, split_digits=True,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True, unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1,
            control_symbols=[config.end_of_document, *config.special_tokens], max_sentence_length=8 * LINE_CHARACTERS,
            num_threads=16, minloglevel=2,  # the sums of unigram depend on the number of threads: keep it fixed
        )  # fmt: skip
    except (RuntimeError, OSError, ValueError) as error:
        raise _refusal(config, str(error)) from None
    return build("tokenizer.model", model.getvalue(), config.end_of_document, config.special_tokens)


def _refusal(config: TokenizerConfig, said: str) -> UserError:
    """What SentencePiece means; it speaks of its source files and of options that are set here."""
    what = f"tokenizer.vocab_size = {config.vocab_size}"
    if most := re.search(r"Vocabulary size too high .*<= (\d+)", said):
        return UserError(f"{what}, but the text has only {most[1]} different pieces, 256 of them bytes",
                         rule="a trained vocabulary is filled by pieces of the text",
                         fix=f"set tokenizer.vocab_size to {most[1]} or less" * (int(most[1]) >= SMALLEST_VOCAB)
                         or f"give more text: it carries no vocabulary of {SMALLEST_VOCAB}")  # fmt: skip
    if taken := re.search(r"(\S+) is already defined", said):
        return UserError(f"the special token '{taken[1]}' has the name of another piece",
                         rule="special tokens need names of their own",
                         fix="rename it in tokenizer.special_tokens or end_of_document")  # fmt: skip
    return UserError(f"no tokenizer of {what} can be trained: {said}",
                     rule="the documents must hold enough different pieces",
                     fix="change the settings of [tokenizer], or give more text")  # fmt: skip


def even_sample(documents: Iterable[str], max_bytes: int) -> list[str]:
    """Documents of `max_bytes` in all, each as likely as any other: those with the lowest hashes. Holds no more."""
    kept: list[tuple[int, int, str]] = []  # a heap with the highest hash on top
    total = 0
    for number, text in enumerate(documents):
        data = text.encode()
        heapq.heappush(kept, (-document_key(data), number, text))
        total += len(data)
        while total > max_bytes and len(kept) > 1:
            total -= len(heapq.heappop(kept)[2].encode())
    return [text for _, _, text in sorted(kept, reverse=True)]


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Sentences for the trainer: lines without the characters that mean something to it."""
    clean = str.maketrans({SPACE: " ", UNKNOWN_MARK: " ", "\0": " "})
    for text in texts:
        for line in text.translate(clean).split("\n"):
            for start in range(0, len(line), LINE_CHARACTERS):
                yield line[start : start + LINE_CHARACTERS]
