"""AutoTokenizer on an exported folder gives the ids that dgpt gives, for any text."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from dgpt.cli import main
from dgpt.config import TokenizerConfig
from dgpt.data import chat
from dgpt.data.tokenizer import Tokenizer, build, load_tokenizer
from dgpt.data.tokenizer_training import train_tokenizer
from dgpt.errors import UserError
from dgpt.huggingface.tokenizer import tokenizer_files, tokenizer_json
from dgpt.outcome import DONE

NAMES = ("<|endoftext|>", "<|user|>", "a,b")
WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in ("a", "e", "io", "ou") for c in ("", "s", "ren", "_x", "12")]
FRAGMENTS = [*NAMES, "<unk>", "<0x41>", "▁", "▁▁", " ", "  ", "     ", "\n", "\r\n", "\t", "\0", "\x1b", "\x7f", "▅",
             "⁇", "\ufeff", "\u200b", "\u2028", "e\u0301", "🙂", "👩\u200d👩\u200d👧", "日本", "語", "한국어", "Ünï",
             "baren", " foux_x12", ".", "self.", "io", "ren"]  # fmt: skip
RANGES = ((0, 0x20), (0, 0x250), (0x3000, 0xA000), (0xE000, 0xF8FF), (0x1F300, 0x1FAFF), (0x10FF00, 0x10FFFF))


def lines(count: int) -> list[str]:
    draw = random.Random(0)

    def piece() -> str:
        choice = draw.random()
        if choice < 0.6:
            return draw.choice(FRAGMENTS)
        return " " * draw.randrange(9) if choice < 0.8 else chr(draw.randrange(*draw.choice(RANGES)))

    return ["", *("".join(piece() for _ in range(draw.randrange(20))) for _ in range(count))]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Without the characters of special tokens' names, so that these are no pieces."""
    draw = random.Random(1)
    words = [*WORDS, *["  ", "    ", "\n", "é", "日本", "self.", "= 3.5", "(x)"] * 20]
    return [" ".join(draw.choice(words) for _ in range(60)) for _ in range(200)]


def byte_level(texts: list[str], **options: Any) -> bytes:
    """As GPT-2's."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(**options)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
                                             initial_alphabet=alphabet)  # fmt: skip
    model.train_from_iterator(texts, trainer)
    return model.to_str(pretty=True).encode()


def byte_fallback(trained: Tokenizer) -> bytes:
    """As Llama 2's: with a sign for spaces, and one put before each text."""
    settings = json.loads(tokenizer_json(trained))
    model = settings["model"]
    model["vocab"] = {piece.replace(" ", "▁"): i for piece, i in model["vocab"].items()}
    model["merges"] = [[part.replace(" ", "▁") for part in pair] for pair in model["merges"]]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    settings["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    return json.dumps(settings).encode()


@pytest.fixture(scope="module", params=["bpe", "unigram", "byte_level", "byte_level_prefix", "byte_fallback"])
def source(request: pytest.FixtureRequest, texts: list[str]) -> Tokenizer:
    if request.param in ("bpe", "unigram"):
        config = TokenizerConfig(vocab_size=400, model_type=request.param, special_tokens=NAMES[1:])
        return train_tokenizer(config, texts)
    if request.param == "byte_fallback":
        return build("tokenizer.json", byte_fallback(train_tokenizer(TokenizerConfig(vocab_size=400), texts)),
                     NAMES[0], NAMES[1:])  # fmt: skip
    prefix = request.param == "byte_level_prefix"
    return build("tokenizer.json", byte_level(texts, add_prefix_space=prefix), NAMES[0], NAMES[1:3] if prefix else ())


def load(tokenizer: Tokenizer, folder: Path, template: str = "") -> Any:
    for name, content in tokenizer_files(tokenizer, 64, chat_template=template)[0].items():
        (folder / name).write_bytes(content)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_ten_thousand_lines_have_the_same_ids_and_come_back(source: Tokenizer, tmp_path: Path) -> None:
    theirs, texts = load(source, tmp_path), lines(10_000)
    ours = source.encode_batch(texts)
    assert theirs(texts).input_ids == ours
    assert theirs.batch_decode(ours) == texts
    assert sum(map(len, ours)) > 50_000
    assert theirs.convert_tokens_to_ids(list(source.special_tokens)) == list(source.special_tokens.values())
    assert theirs.eos_token_id == source.eod_id
    assert theirs.decode([source.eod_id]) == NAMES[0]


def test_padding_is_no_token_of_a_text(source: Tokenizer, tmp_path: Path) -> None:
    theirs = load(source, tmp_path)
    padded = theirs(["a b", ""], padding=True)
    assert padded.input_ids[1] == [theirs.pad_token_id] * len(padded.input_ids[0])
    assert theirs.pad_token == ("<unk>" if "<unk>" in theirs.get_vocab() else NAMES[0])


def test_a_tokenizer_json_is_passed_on_if_nothing_in_it_changes_texts(texts: list[str]) -> None:
    given = byte_level(texts, add_prefix_space=False)
    assert tokenizer_json(build("tokenizer.json", given, NAMES[0], ())) == given
    assert tokenizer_json(build("tokenizer.json", given, NAMES[0], NAMES[1:2])) != given  # lacks a special token


def test_an_exported_tokenizer_can_be_used_alone(source: Tokenizer, tmp_path: Path) -> None:
    """As after another tool has saved the folder: tokenizer.json is all that is left."""
    load(source, tmp_path).save_pretrained(tmp_path / "saved")
    content = (tmp_path / "saved" / "tokenizer.json").read_bytes()
    if json.loads(content)["model"]["type"] == "Unigram":
        with pytest.raises(UserError, match="its model is Unigram"):
            build("tokenizer.json", content, NAMES[0], ())
        return
    again = build("tokenizer.json", content, NAMES[0], ())
    texts = lines(300)
    assert again.encode_batch(texts) == source.encode_batch(texts)
    assert [again.decode(ids) for ids in again.encode_batch(texts)] == texts


def test_a_chat_template_writes_the_end_of_an_answer_as_a_token(texts: list[str], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=400), texts)
    theirs = load(tokenizer, tmp_path, chat.JINJA)
    messages: list[chat.Message] = [{"role": "user", "content": "io?"}, {"role": "assistant", "content": "baren"},
                                    {"role": "user", "content": "  日本 "}]  # fmt: skip
    ids, _ = chat.encode(chat.segments(messages, answer=True), tokenizer)
    prompt = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert theirs.decode(prompt) == theirs.decode(ids)
    assert prompt.count(tokenizer.eod_id) == 1


def test_a_changed_tokenizer_json_is_what_counts(make_run: Any, tmp_path: Path) -> None:
    assert main(["export", str(make_run()), str(tmp_path / "hf")]) == DONE
    path = tmp_path / "hf" / "tokenizer.json"
    settings = json.loads(path.read_text())
    del settings["model"]["merges"][0]
    path.write_text(json.dumps(settings))
    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "ours")]) == DONE
    assert load_tokenizer(tmp_path / "ours" / "tokenizer").files().keys() >= {"tokenizer.json"}
