"""A Hugging Face `tokenizer.json` with a BPE model, made lossless.

Two kinds are: byte-level (GPT-2, Llama 3), and byte fallback (Llama 2).
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dgpt.data.tokenizer import SPACE, Backend
from dgpt.errors import UserError

BYTE_NAMES = [f"<0x{byte:02X}>" for byte in range(256)]


def huggingface_backend(model: bytes, special_tokens: tuple[str, ...]) -> Backend:
    """Wrap the bytes of a tokenizer.json. Raises UserError where it is none, or cannot give every text back."""
    from tokenizers import Tokenizer

    settings, specials, literals, piece_bytes = lossless_settings(model, special_tokens)
    vocab: dict[str, int] = settings["model"]["vocab"]
    try:
        tokenizer = Tokenizer.from_str(json.dumps(settings))
    except Exception as error:  # `tokenizers` raises bare Exception
        raise _refuse(f"{type(error).__name__}: {error}") from None

    def encode(texts: list[str]) -> list[Sequence[int]]:
        return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    table = [b""] * (1 + max([*vocab.values(), *specials.values()]))
    for piece, i in vocab.items():
        table[i] = piece_bytes(piece)
    for name, i in specials.items():
        table[i] = name.encode()
    whole = re.compile(rf"{SPACE}|[^{SPACE}]+" if literals else r"(?s:.+)")
    return Backend("tokenizer.json", model, encode, table, specials, whole, False, literals)


Lossless = tuple[dict[str, Any], dict[str, int], dict[str, list[int]], Callable[[str], bytes]]


def lossless_settings(model: bytes, special_tokens: tuple[str, ...]) -> Lossless:
    """A tokenizer.json without what changes the text, and without special tokens; these, with their ids.

    Also the ids of literal chunks, and the function from a piece to its bytes. Raises UserError as the backend does.
    """
    try:
        settings = json.loads(model)
        if (kind := settings["model"].get("type", "BPE")) != "BPE":
            raise _refuse(f"its model is {kind}")
        specials = _take_special_tokens(settings, special_tokens)
        return settings, specials, *_lossless(settings, settings["model"]["vocab"])
    except UserError:
        raise
    except Exception as error:  # whatever a file of another kind leads to
        raise _refuse(f"{type(error).__name__}: {error}") from None


def _take_special_tokens(settings: dict[str, Any], names: tuple[str, ...]) -> dict[str, int]:
    """Remove added tokens from the model, so that no text meets them; gives the ids of the special ones."""
    vocab, merges = settings["model"]["vocab"], settings["model"].get("merges", [])
    specials = {token["content"]: token["id"] for token in settings.get("added_tokens", []) if token["special"]}
    for name in names:
        size = 1 + max([*vocab.values(), *specials.values()])
        specials.setdefault(name, vocab.get(name, size))
    merged = {part for merge in merges for part in _parts(merge)}
    for name in specials.keys() - merged:
        vocab.pop(name, None)
    settings |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return dict(sorted(specials.items(), key=lambda item: item[1]))


def _parts(merge: str | list[str]) -> Iterator[str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    yield from (left, right, left + right)


def _lossless(settings: dict[str, Any], vocab: dict[str, int]) -> tuple[dict[str, list[int]], Any]:
    """Drop what changes the text; gives the ids of literal chunks, and the function from piece to bytes."""
    model = settings["model"]
    affixes = (model.get("continuing_subword_prefix"), model.get("end_of_word_suffix"))
    if any(affixes):
        raise _refuse(f"its words have affixes: {affixes}")
    model["dropout"] = None
    byte_level = _byte_level_alphabet()
    nodes = [node for node in _nodes(settings.get("pre_tokenizer")) if node.get("type") == "ByteLevel"]
    if nodes and byte_level.keys() <= vocab.keys():
        settings["normalizer"] = None
        for node in nodes:
            node["add_prefix_space"] = False
        return {}, lambda piece: b"".join(byte_level.get(c, c.encode()) for c in piece)
    if model.get("byte_fallback") and vocab.keys() >= set(BYTE_NAMES):
        spaced = not any(SPACE in piece for piece in vocab)  # pieces with plain spaces, as dgpt exports them
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        settings |= {"normalizer": None if spaced else replace, "pre_tokenizer": None}
        names = {name: bytes([byte]) for byte, name in enumerate(BYTE_NAMES)}
        literal = {} if spaced else {SPACE: [vocab[BYTE_NAMES[byte]] for byte in SPACE.encode()]}
        return literal, lambda piece: names.get(piece) or piece.replace(SPACE, " ").encode()
    raise _refuse("it is neither byte-level nor has it byte fallback, so some characters would be lost")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """A pre-tokenizer and all that it holds."""
    if isinstance(tree, dict):
        yield tree
        for child in tree.get("pretokenizers", []):
            yield from _nodes(child)


def _byte_level_alphabet() -> dict[str, bytes]:
    """Character -> byte, as GPT-2 maps them (openai/gpt-2, encoder.py): printable bytes stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = [*printable, *range(256, 256 + len(others))]
    return {chr(c): bytes([byte]) for c, byte in zip(stand_ins, [*printable, *others], strict=True)}


def _refuse(why: str) -> UserError:
    return UserError(f"the tokenizer.json cannot be used: {why}",
                     rule="a BPE model, byte-level (all 256 bytes in the vocabulary) or with byte fallback",
                     fix="take another tokenizer.json, or train a tokenizer (tokenizer.kind = 'train')")  # fmt: skip
