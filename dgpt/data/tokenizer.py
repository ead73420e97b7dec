"""Tokenizer: text to ids and back without loss, and ids for special tokens that no text can reach.

Two kinds of model stand behind one class (SentencePiece, and the BPE of Hugging Face `tokenizers`). Both give a table
from id to the bytes that the id stands for, so decoding is a join, and what a library's own decoder would strip or
replace cannot be lost.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgpt.config import TokenizerConfig
from dgpt.data.files import write_atomically
from dgpt.errors import UserError
from dgpt.storage import Place

SPACE = "▁"  # U+2581: how SentencePiece writes a space inside a piece; as a character of the text it goes by its bytes
CACHED_CHUNKS = 1 << 18
PROBES = (" a  b\t\n\r\n   c ", f" {SPACE}{SPACE} x", "Ünï\u0301 日本 🙂 \0\x7f\ufeff\u200b", "", "\n")
SETTINGS_FILE = "tokenizer_settings.json"
Tokens = NDArray[np.uint16 | np.uint32]


@dataclass(frozen=True)
class Backend:
    """A tokenizer model, stripped of everything that changes the text or reads special tokens out of it."""

    file_name: str  # that it is stored under
    model: bytes  # the file as it was given
    encode: Callable[[list[str]], list[Sequence[int]]]
    table: list[bytes]  # id -> the bytes it stands for; for a special token its name
    special_tokens: dict[str, int]
    chunks: re.Pattern[str]  # cuts a text into parts that may be encoded one by one
    cache_chunks: bool  # chunks are words that come again
    literals: dict[str, list[int]]  # chunks whose ids are given, past the model
    unknown: int | None  # id of a piece for what the model does not know, which no text reaches


class Tokenizer:
    """`encode` and `decode` are exact inverses for every text; plain text never encodes to a special token."""

    def __init__(self, backend: Backend, end_of_document: str) -> None:
        self.end_of_document = end_of_document
        self.special_tokens = backend.special_tokens
        self.eod_id = backend.special_tokens[end_of_document]
        self.vocab_size = len(backend.table)
        # Ids that stand for no text and so are never learnt: not to be sampled.
        self.unreachable = tuple(i for i in (backend.unknown,) if i is not None and i != self.eod_id)
        self.dtype: np.dtype[np.uint16 | np.uint32] = token_dtype(self.vocab_size)
        self.hash = hashlib.sha256(self._settings(backend) + backend.model).hexdigest()
        self._backend = backend
        self._literals = {chunk: self._pack(ids) for chunk, ids in backend.literals.items()}
        self._known = self._literals.copy()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without an end-of-document token."""
        return list(map(int, self.encode_arrays([text])[0]))

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each text."""
        return [list(map(int, ids)) for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Iterable[str]) -> list[Tokens]:
        """Ids of each text, (n,) little-endian uint16 or uint32.

        Words come again and again, so each distinct one is encoded once and kept as the bytes of its ids.
        """
        known, texts_in_chunks = self._known, [self._backend.chunks.findall(text) for text in texts]
        new = list({chunk for chunks in texts_in_chunks for chunk in chunks if chunk not in known})
        known.update(zip(new, map(self._pack, self._backend.encode(new)), strict=True))
        data = [b"".join(map(known.__getitem__, chunks)) for chunks in texts_in_chunks]
        if not self._backend.cache_chunks or len(known) > CACHED_CHUNKS:
            self._known = self._literals.copy()
        return [np.frombuffer(ids, self.dtype) for ids in data]

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Text of `ids`; bytes that are no UTF-8 (a model may sample such) become U+FFFD."""
        table = self._backend.table
        return b"".join([table[i] for i in ids]).decode("utf-8", "replace")

    def byte_ends(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Bytes of the text of `ids` up to the end of each token, (n,)."""
        return np.cumsum([len(self._backend.table[i]) for i in ids], dtype=np.int64)

    @cached_property
    def text_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of text that each id stands for, (vocab_size,); 0 for special tokens."""
        lengths = np.array([len(piece) for piece in self._backend.table], np.int64)
        lengths[list(self.special_tokens.values())] = 0
        return lengths

    def save(self, folder: Path) -> list[str]:
        """Write the model and its settings into `folder`, for `load_tokenizer`; gives the names of the files."""
        for name, content in self.files().items():
            write_atomically(folder / name, [content])
        return list(self.files())

    def files(self) -> dict[str, bytes]:
        """What `save` writes, by file name."""
        return {self._backend.file_name: self._backend.model, SETTINGS_FILE: self._settings(self._backend)}

    def _pack(self, ids: Sequence[int]) -> bytes:
        return struct.pack(f"<{len(ids)}{self.dtype.char}", *ids)  # faster than numpy for the few ids of a word

    def _settings(self, backend: Backend) -> bytes:
        settings = {"file": backend.file_name, "end_of_document": self.end_of_document,
                    "special_tokens": self.special_tokens, "vocab_size": self.vocab_size}  # fmt: skip
        return json.dumps(settings, indent=1, ensure_ascii=False).encode()


def token_dtype(vocab_size: int) -> np.dtype[np.uint16 | np.uint32]:
    """Little-endian data type of token shards."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Copy the tokenizer into `folder` (a run folder, an export)."""
    tokenizer.save(folder)


def load_tokenizer(folder: Place) -> Tokenizer:
    """Read a tokenizer that `save` wrote. Raises UserError where it is missing or not whole."""
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_bytes())
        model = (folder / settings["file"]).read_bytes()
        return build(settings["file"], model, settings["end_of_document"], tuple(settings["special_tokens"]))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"no tokenizer can be read from '{folder}': {error}",
                        rule=f"a prepared data folder and a run folder hold {SETTINGS_FILE} and the model it names",
                        fix="copy it from the data folder, or `dgpt prepare` that again") from None  # fmt: skip


def load_existing(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer file that tokenizer.path names, with the special tokens of the run."""
    check_tokenizer_file(config)
    name = "tokenizer.model" if config.kind == "sentencepiece" else "tokenizer.json"
    return build(name, Path(config.path).read_bytes(), config.end_of_document, config.special_tokens)


def check_tokenizer_file(config: TokenizerConfig) -> None:
    """Raise UserError where tokenizer.path is given and no file."""
    if config.path and not Path(config.path).is_file():
        raise UserError(f"tokenizer.path = '{config.path}' is not a file",
                        rule=f"kind = '{config.kind}' takes a SentencePiece .model or a Hugging Face tokenizer.json",
                        fix="correct the path")  # fmt: skip


def build(file_name: str, model: bytes, end_of_document: str, special_tokens: Sequence[str]) -> Tokenizer:
    """A tokenizer from the bytes of a `tokenizer.model` or `tokenizer.json`; names it lacks get new ids at the end."""
    from dgpt.data.huggingface_backend import huggingface_backend
    from dgpt.data.sentencepiece_backend import sentencepiece_backend

    make = sentencepiece_backend if file_name == "tokenizer.model" else huggingface_backend
    backend = make(model, tuple(dict.fromkeys((end_of_document, *special_tokens))))
    tokenizer = Tokenizer(backend, end_of_document)
    _check_round_trip(tokenizer)
    return tokenizer


def _check_round_trip(tokenizer: Tokenizer) -> None:
    """A model that loses text in some way that its backend does not know of is refused here."""
    names = " ".join(tokenizer.special_tokens)
    for text in (*PROBES, names, f"{names}<unk><0x41>"):
        ids = tokenizer.encode(text)
        reached = set(ids) & set(tokenizer.special_tokens.values())
        if tokenizer.decode(ids) != text or reached:
            raise UserError(f"the tokenizer turns {text!r} into {tokenizer.decode(ids)!r}",
                            rule="every text comes back exactly, and none encodes to a special token",
                            fix="take another tokenizer, or train one (tokenizer.kind = 'train')")  # fmt: skip
