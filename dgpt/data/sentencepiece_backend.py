"""SentencePiece models, made lossless: no normalisation, no dummy prefix, special tokens out of reach of the text."""

import re
from collections.abc import Sequence
from typing import Any

from dgpt.data.tokenizer import SPACE, Backend
from dgpt.errors import UserError

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # types of pieces in sentencepiece_model.proto
UNIGRAM, BPE = 1, 2  # types of models there
SCORE_STEPS = 1024  # of a unigram score in [n, n + 1)
# Parts that no piece of a usual model spans: a word or a run of signs with the spaces before it, spaces, a newline.
WORDS = re.compile(rf"{SPACE}|\n| *[^\W\d_]+| *(?:[^\w \n{SPACE}]|[\d_])+| +")
WHOLE = re.compile(rf"{SPACE}|[^{SPACE}]+")


def sentencepiece_backend(model: bytes, special_tokens: tuple[str, ...]) -> Backend:
    """Wrap a serialised ModelProto. Raises UserError where it is none, is damaged, or has no byte fallback."""
    proto = lossless_proto(model, special_tokens)
    try:
        return _wrap(model, proto)
    except (RuntimeError, ValueError) as error:
        raise _refuse(str(error)) from None


def _wrap(model: bytes, proto: Any) -> Backend:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    from_text = [p.replace(SPACE, " ") for i, p in enumerate(pieces) if _is_from_text(processor, i)]
    words = proto.trainer_spec.model_type in (UNIGRAM, BPE) and all(map(WORDS.fullmatch, from_text))

    def encode(texts: list[str]) -> list[Sequence[int]]:
        return processor.encode(texts, num_threads=1)  # type: ignore[no-any-return]  # the library is untyped

    return Backend(
        file_name="tokenizer.model",
        model=model,
        encode=encode,
        table=[_bytes_of(processor, i, piece) for i, piece in enumerate(pieces)],
        special_tokens={piece: i for i, piece in enumerate(pieces) if processor.is_control(i)},
        chunks=WORDS if words else WHOLE,
        cache_chunks=words,
        literals={SPACE: [processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]},
        unknown=processor.unk_id(),
    )


def lossless_proto(model: bytes, special_tokens: tuple[str, ...]) -> Any:
    """The ModelProto with identity normalisation, and each special token a control piece; new ones go to the end."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    except DecodeError:
        raise _refuse("it is not a SentencePiece model") from None
    if sum(piece.type == BYTE for piece in proto.pieces) != 256:
        raise _refuse("it has no byte fallback, so characters outside of its vocabulary would be lost")
    proto.normalizer_spec.Clear()
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.denormalizer_spec.Clear()
    if proto.trainer_spec.model_type == UNIGRAM:
        _round_scores(proto)
    _mark_special(proto, special_tokens)
    return proto


def _round_scores(proto: Any) -> None:
    """Let sums of scores be exact in fp32, up to 16,384: else rounding, which depends on the text before, breaks ties.

    Five spaces are 4 + 1 or 1 + 4 at the same score; another implementation would choose otherwise.
    """
    for piece in proto.pieces:
        piece.score = round(piece.score * SCORE_STEPS) / SCORE_STEPS


def _mark_special(proto: Any, special_tokens: tuple[str, ...]) -> None:
    by_name = {piece.piece: piece for piece in proto.pieces}
    for name in special_tokens:
        piece = by_name[name] if name in by_name else proto.pieces.add(piece=name, score=0.0)
        if piece.type in (UNKNOWN, BYTE):
            raise _refuse(f"the special token '{name}' is its unknown token or one of its bytes")
        piece.type = CONTROL
    proto.trainer_spec.vocab_size = len(proto.pieces)


def _is_from_text(processor: Any, i: int) -> bool:
    return not (processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i))


def _bytes_of(processor: Any, i: int, piece: str) -> bytes:
    if processor.is_byte(i):
        return bytes([int(piece[3:5], 16)])
    return (piece.replace(SPACE, " ") if _is_from_text(processor, i) else piece).encode()


def _refuse(why: str) -> UserError:
    return UserError(f"the SentencePiece model cannot be used: {why}",
                     rule="a SentencePiece model with the 256 pieces of byte fallback, so that any text comes back",
                     fix="train it with --byte_fallback, name other special tokens, or train one here")  # fmt: skip
