"""Round trips are exact and special tokens out of reach, whatever the text and whichever the model."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dgpt.config import TokenizerConfig
from dgpt.data.sentencepiece_backend import lossless_proto
from dgpt.data.tokenizer import Tokenizer, build, load_existing, load_tokenizer, save_tokenizer
from dgpt.data.tokenizer_training import train_tokenizer
from dgpt.errors import UserError

NAMES = ("<|endoftext|>", "<|user|>", "a,b")
FRAGMENTS = [*NAMES, "<unk>", "<s>", "<0x41>", "▁", "▁▁", " ", "  ", "\n", "\r\n", "\t", "\0", "\x1b", "▅", "⁇",
             "\ufeff", "\u200b", "e\u0301", "🙂", "日本", "baren", " foux_x12", "."]  # fmt: skip
any_text = st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4)).map("".join))
property_test = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def byte_level_json(texts: list[str]) -> bytes:
    """As GPT-2's: byte-level BPE, with a special token in the vocabulary, a prefix space and a template."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    model.normalizer = tokenizers.normalizers.NFC()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>", "<|user|>"],
                                             initial_alphabet=alphabet, show_progress=False)  # fmt: skip
    model.train_from_iterator(texts, trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing("<|user|> $A", special_tokens=[("<|user|>", 1)])
    return model.to_str().encode()


def byte_fallback_json(tokenizer_model: bytes) -> bytes:
    """As Llama 2's: a SentencePiece vocabulary with byte fallback, a prefix and `▁` for spaces."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)
    vocab = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    merges = [[piece[:k], piece[k:]] for piece in vocab for k in range(1, len(piece))
              if piece[:k] in vocab and piece[k:] in vocab]  # fmt: skip
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": merges,
        "byte_fallback": True,
        "unk_token": "<unk>",
        "fuse_unk": True,
    }
    normalizer = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}  # fmt: skip
    added = [{"id": 0, "content": "<unk>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False}]  # fmt: skip
    return json.dumps({"version": "1.0", "model": model, "normalizer": normalizer, "added_tokens": added}).encode()


@pytest.fixture(scope="module", params=["bpe", "unigram", "byte_level", "byte_fallback"])
def tokenizer(request: pytest.FixtureRequest, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One of each kind, through a folder and back."""
    if request.param in ("bpe", "unigram"):
        config = TokenizerConfig(vocab_size=400, model_type=request.param, special_tokens=NAMES[1:])
        made = train_tokenizer(config, texts)
    elif request.param == "byte_level":
        made = build("tokenizer.json", byte_level_json(texts), NAMES[0], NAMES[1:])
    else:
        trained = train_tokenizer(TokenizerConfig(vocab_size=400), texts)
        made = build("tokenizer.json", byte_fallback_json(trained._backend.model), NAMES[0], NAMES[1:])
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(made, folder)
    loaded = load_tokenizer(folder)
    assert (loaded.hash, loaded.special_tokens, loaded.vocab_size) == (made.hash, made.special_tokens, made.vocab_size)
    return loaded


@property_test
@given(any_text)
@example("".join(FRAGMENTS))
def test_decode_gives_every_text_back_and_special_tokens_are_never_reached(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special_tokens.values())


@pytest.fixture(scope="module")
def unigram(texts: list[str]) -> Tokenizer:
    return train_tokenizer(TokenizerConfig(vocab_size=400, model_type="unigram"), texts)


def test_special_tokens_have_ids_of_their_own_and_decode_to_their_names(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.special_tokens[name] for name in NAMES]
    assert len(set(ids)) == 3
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.eod_id == ids[0]
    assert tokenizer.decode(ids) == "".join(NAMES)


@property_test
@given(any_text.filter(lambda text: "▁" not in text))
@example("    return x12 == 3.5\n\n\tfoo_bar(é)  # baren s\n")
@example("".join(" " * n + "x\n" for n in range(40)))
def test_word_by_word_encoding_equals_sentencepiece_on_the_whole_text(
    bpe: Tokenizer, unigram: Tokenizer, text: str
) -> None:
    for ours in (bpe, unigram):
        proto = lossless_proto(ours._backend.model, tuple(ours.special_tokens))
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        assert ours._backend.cache_chunks
        assert ours.encode(text) == processor.encode(text)


def test_batch_and_single_encoding_agree(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch(["a b", "", "▁"]) == [tokenizer.encode("a b"), [], tokenizer.encode("▁")]


def test_bytes_that_are_no_text_decode_to_the_replacement_character(bpe: Tokenizer) -> None:
    assert bpe.decode(bpe.encode("ř")[:1]) == "\ufffd"


def test_bpe_pieces_compress(bpe: Tokenizer, texts: list[str]) -> None:
    assert len(bpe.encode(texts[0])) < 0.6 * len(texts[0].encode())


def foreign_model(tmp_path: Path, texts: list[str], **options: object) -> TokenizerConfig:
    """A SentencePiece model as others train them: nmt_nfkc, dummy prefix, spaces squeezed, <s> and </s>."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(texts).split("\n")), model_writer=model, vocab_size=450, minloglevel=2,
        model_type="bpe", hard_vocab_limit=False, **options)  # fmt: skip
    (tmp_path / "foreign.model").write_bytes(model.getvalue())
    return TokenizerConfig(kind="sentencepiece", path=str(tmp_path / "foreign.model"), end_of_document="</s>",
                           special_tokens=("<|new|>",))  # fmt: skip


def test_a_foreign_sentencepiece_model_becomes_lossless(tmp_path: Path, texts: list[str]) -> None:
    tokenizer = load_existing(foreign_model(tmp_path, texts, byte_fallback=True, user_defined_symbols=["<sep>"]))
    text = "  ﬁne\u00a0 </s> <sep><|new|>\n ½ "
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.special_tokens["</s>"] == tokenizer.eod_id == 2
    assert tokenizer.special_tokens["<|new|>"] == tokenizer.vocab_size - 1


def test_a_model_that_would_lose_text_is_refused(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(UserError, match="no byte fallback"):
        load_existing(foreign_model(tmp_path, texts))
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        build("tokenizer.model", b"no model", "</s>", ())
    word_piece = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(UserError, match="model is WordPiece"):
        build("tokenizer.json", word_piece.to_str().encode(), "</s>", ())
    whitespace = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    with pytest.raises(UserError, match="neither byte-level"):
        build("tokenizer.json", whitespace.to_str().encode(), "</s>", ())
    with pytest.raises(UserError, match=r"tokenizer.json cannot be used"):
        build("tokenizer.json", b"{", "</s>", ())


def test_a_missing_tokenizer_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer.path = .*none.json"):
        load_existing(TokenizerConfig(kind="huggingface", path=str(tmp_path / "none.json")))
    with pytest.raises(UserError, match="no tokenizer can be read"):
        load_tokenizer(tmp_path)


def test_a_damaged_model_is_the_users_error_wherever_it_is_hit(bpe: Tokenizer) -> None:
    model = bpe._backend.model
    for place in range(0, len(model), 97):
        damaged = bytearray(model)
        damaged[place] ^= 0xFF
        with contextlib.suppress(UserError):  # some damage is to a piece alone: then it is another, whole tokenizer
            tokenizer = build("tokenizer.model", bytes(damaged), "<|endoftext|>", ())
            assert tokenizer.hash != bpe.hash


def test_unknown_cannot_be_a_special_token(bpe: Tokenizer) -> None:
    with pytest.raises(UserError, match="'<unk>' is its unknown token"):
        build("tokenizer.model", bpe._backend.model, "<unk>", ())
