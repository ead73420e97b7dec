"""tokenizer.json: a tokenizer that gives, under `AutoTokenizer`, the ids that dgpt gives, for any text.

A piece has its spaces as they are in the text, not as SentencePiece's sign for them: then no character of a text has to
be changed, and that sign itself, which is no piece, goes by its bytes as any other character that is none.
"""

import json
import random
from collections.abc import Mapping
from typing import Any

from dgpt.data.huggingface_backend import lossless_settings
from dgpt.data.sentencepiece_backend import BPE, BYTE, CONTROL, UNIGRAM, UNKNOWN, USER_DEFINED, lossless_proto
from dgpt.data.tokenizer import PROBES, SETTINGS_FILE, SPACE, Tokenizer
from dgpt.errors import UserError
from dgpt.huggingface.names import HeadKind

JSON, CONFIG = "tokenizer.json", "tokenizer_config.json"
PADDING = ("<pad>", "<|pad|>", "[PAD]", "<|padding|>", "<unk>")  # which no text encodes to
NAMED = (UNKNOWN, CONTROL, BYTE)  # pieces whose name is not what a text holds
UNREACHED = -1e6  # score of a piece that no path through the text's own pieces can be worse than
CHECKED_TEXTS = 1000
PAIRS: dict[HeadKind, str] = {"classification": "A|B", "extractive_qa": "A|B|"}  # |: the end of a document


def tokenizer_files(
    tokenizer: Tokenizer, max_tokens: int, kind: HeadKind = "language_model", chat_template: str = ""
) -> tuple[dict[str, bytes], int]:
    """The files of a tokenizer by name, and the id that pads. kind: of the head, which says how a pair is joined.

    Text that looks like a special token is text, except under a chat template, which writes the end of an answer so.
    """
    content = _with_pairs(tokenizer_json(tokenizer), PAIRS.get(kind, ""), tokenizer)
    specials = {token["content"]: token["id"] for token in json.loads(content)["added_tokens"] if token["special"]}
    pad = next((name for name in PADDING if name in specials), tokenizer.end_of_document)
    end = tokenizer.end_of_document
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": pad,
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": not chat_template,
        "model_input_names": ["input_ids", "attention_mask"],  # GPT-2 would add token types to its input
        **({"chat_template": chat_template} if chat_template else {}),
    }
    return {**tokenizer.files(), JSON: content, CONFIG: json_bytes(values)}, specials[pad]


def _with_pairs(content: bytes, pair: str, tokenizer: Tokenizer) -> bytes:
    """A tokenizer.json that joins two texts as the task does in training; a single text stays as it is."""
    if not pair:
        return content
    end = tokenizer.end_of_document
    pieces = {"|": {"SpecialToken": {"id": end, "type_id": 0}},
              **{name: {"Sequence": {"id": name, "type_id": 0}} for name in "AB"}}  # fmt: skip
    rule = {"type": "TemplateProcessing", "single": [pieces["A"]], "pair": [pieces[sign] for sign in pair],
            "special_tokens": {end: {"id": end, "ids": [tokenizer.eod_id], "tokens": [end]}}}  # fmt: skip
    return json_bytes(json.loads(content) | {"post_processor": rule})


def json_bytes(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def tokenizer_json(tokenizer: Tokenizer) -> bytes:
    """tokenizer.json. One that the tokenizer was made of is passed on, if it gives the same ids as it is.

    Raises UserError if `tokenizers` cannot express the tokenizer.
    """
    files = tokenizer.files()
    specials = tuple(json.loads(files[SETTINGS_FILE])["special_tokens"])
    if JSON in files and not _difference(tokenizer, files[JSON]):
        return files[JSON]
    make = _from_json if JSON in files else _from_sentencepiece
    content = make(files[JSON if JSON in files else "tokenizer.model"], specials)
    if difference := _difference(tokenizer, content):
        raise UserError(f"the tokenizer cannot be written as {JSON}: {difference}",
                        rule="under transformers, any text must have the ids that it has here",
                        fix="export with --format dgpt")  # fmt: skip
    return content


def _from_sentencepiece(model: bytes, special_tokens: tuple[str, ...]) -> bytes:
    proto = lossless_proto(model, special_tokens)
    names = [piece.piece if piece.type in NAMED else piece.piece.replace(SPACE, " ") for piece in proto.pieces]
    scores = {
        name: piece.score
        for name, piece in zip(names, proto.pieces, strict=True)
        if piece.type not in (*NAMED, USER_DEFINED)
    }
    added = {name: i for i, name in enumerate(names) if proto.pieces[i].type in (UNKNOWN, CONTROL)}
    defined = {name: i for i, name in enumerate(names) if proto.pieces[i].type == USER_DEFINED}
    unknown = next(name for i, name in enumerate(names) if proto.pieces[i].type == UNKNOWN)
    if proto.trainer_spec.model_type == BPE:
        values = {"model": _bpe({name: i for i, name in enumerate(names)}, _merges(scores), unknown)}
    elif proto.trainer_spec.model_type == UNIGRAM:
        values = _unigram(names, scores, names.index(unknown))
    else:
        raise UserError(f"the SentencePiece model is of type {proto.trainer_spec.model_type}",
                        rule="types that tokenizers knows are unigram (1) and bpe (2)",
                        fix="export with --format dgpt")  # fmt: skip
    return _whole(values, added, defined)


def _bpe(vocab: Mapping[str, int], merges: list[list[str]], unknown: str) -> dict[str, Any]:
    return {"type": "BPE", "unk_token": unknown, "fuse_unk": True, "byte_fallback": True, "vocab": vocab,
            "merges": merges}  # fmt: skip


def _merges(scores: Mapping[str, float]) -> list[list[str]]:
    """Every way to make a piece of two others, those of the highest score first: what SentencePiece merges first."""
    ways = [(-score, k, piece) for piece, score in scores.items() for k in range(1, len(piece))
            if piece[:k] in scores and piece[k:] in scores]  # fmt: skip
    return [[piece[:k], piece[k:]] for _, k, piece in sorted(ways)]


def _unigram(names: list[str], scores: Mapping[str, float], unknown: int) -> dict[str, Any]:
    """`tokenizers` would find a special token or a byte's name in a text, if the text has no likelier pieces.

    It has, but where one of the name's characters is no piece: so the text is cut there.
    """
    model = {"type": "Unigram", "unk_id": unknown, "byte_fallback": True,
             "vocab": [[name, scores.get(name, UNREACHED)] for name in names]}  # fmt: skip
    cuts = sorted({character for name in names if name not in scores for character in name} - scores.keys())
    if not cuts:
        return {"model": model}
    pattern = "[" + "".join(f"\\x{{{ord(character):x}}}" for character in cuts) + "]"
    return {"model": model, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                                              "invert": False}}  # fmt: skip


def _from_json(model: bytes, special_tokens: tuple[str, ...]) -> bytes:
    """The given tokenizer.json as it is used here: without what changes the text, and with all special tokens."""
    settings, specials, literals, _ = lossless_settings(model, special_tokens)
    bpe = settings["model"]
    if literals:  # pieces with SentencePiece's sign for a space
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in bpe["merges"]]
        bpe["merges"] = [[part.replace(SPACE, " ") for part in pair] for pair in pairs]
        bpe["vocab"] = {piece.replace(SPACE, " "): i for piece, i in bpe["vocab"].items()}
        settings |= {"normalizer": None, "decoder": None}
    bpe["vocab"] |= specials
    values = {key: value for key, value in settings.items() if value is not None}
    return _whole(values, specials, {})


def _whole(values: Mapping[str, Any], special: Mapping[str, int], defined: Mapping[str, int]) -> bytes:
    """A tokenizer.json around a model. special: names out of reach of the text; defined: found before all else."""
    as_is = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = [{"id": i, "content": name, "special": kind is special, **as_is}
              for kind in (special, defined) for name, i in kind.items()]  # fmt: skip
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    rest = {"truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None, "post_processor": None}
    return json_bytes({"version": "1.0", **rest, "decoder": decoder, **values, "added_tokens": tokens})


def _difference(tokenizer: Tokenizer, content: bytes) -> str | None:
    """The first text for which the two give other ids, or of which the other gives another text back."""
    from tokenizers import Tokenizer as Other

    other = Other.from_str(content.decode())
    other.encode_special_tokens = True
    for name, i in tokenizer.special_tokens.items():
        if other.token_to_id(name) != i:
            return f"'{name}' is {other.token_to_id(name)} there and {i} here"
    texts = _texts(tokenizer)
    for text, ids, theirs in zip(texts, tokenizer.encode_batch(texts), other.encode_batch(texts), strict=True):
        if ids != theirs.ids or other.decode(ids, skip_special_tokens=False) != text:
            return f"{text!r} is {theirs.ids} there and {ids} here"
    return None


def _texts(tokenizer: Tokenizer) -> list[str]:
    """Texts of the tokenizer's own pieces, so that what it can merge is there, and of what is often lost."""
    draw = random.Random(0)
    odd = (*PROBES, *tokenizer.special_tokens, "<unk>", "<0x41>", SPACE, "   ", "\t", "\r\n")
    pieces = [tokenizer.decode([i]) for i in draw.choices(range(tokenizer.vocab_size), k=CHECKED_TEXTS)]
    return [*odd, *("".join(draw.choice(draw.choice((pieces, odd))) for _ in range(8)) for _ in range(CHECKED_TEXTS))]
