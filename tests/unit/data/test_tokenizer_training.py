"""Training sees an even sample and gives the vocabulary that was asked for."""

import pytest

from dgpt.config import TokenizerConfig
from dgpt.data.tokenizer_training import even_sample, train_tokenizer
from dgpt.errors import UserError


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_vocab_size_counts_everything(texts: list[str], model_type: str) -> None:
    config = TokenizerConfig(vocab_size=420, model_type=model_type, special_tokens=("<|a|>", "x,y"))  # type: ignore[arg-type]
    first, second = train_tokenizer(config, texts), train_tokenizer(config, texts)
    assert first.vocab_size == 420
    assert first.hash == second.hash


def test_a_vocabulary_that_the_text_cannot_fill_is_refused_with_the_largest_that_it_can(texts: list[str]) -> None:
    with pytest.raises(UserError, match=r"vocab_size = 5000, but the text has only \d{3} different pieces") as caught:
        train_tokenizer(TokenizerConfig(vocab_size=5000), ["too little text"])
    assert "give more text" in caught.value.fix, "no vocabulary below 300 is allowed"
    with pytest.raises(UserError, match="vocab_size = 50000, but the text has only") as caught:
        train_tokenizer(TokenizerConfig(vocab_size=50000), texts)
    most = int(caught.value.fix.split()[3])
    assert train_tokenizer(TokenizerConfig(vocab_size=most), texts).vocab_size == most


def test_a_special_token_with_the_name_of_a_byte_is_refused(texts: list[str]) -> None:
    with pytest.raises(UserError, match="special"):
        train_tokenizer(TokenizerConfig(vocab_size=400, special_tokens=("<0x41>",)), texts)


def test_even_sample_is_bounded_and_blind_to_the_order(texts: list[str]) -> None:
    sample = even_sample(texts, 5000)
    assert sample == even_sample(texts[::-1], 5000)
    size = sum(len(text.encode()) for text in sample)
    assert 4000 < size <= 5000


def test_even_sample_draws_from_all_over(texts: list[str]) -> None:
    numbers = [texts.index(text) for text in even_sample(texts, sum(len(t.encode()) for t in texts) // 4)]
    assert min(numbers) < 30
    assert max(numbers) > 170
    assert len(numbers) == pytest.approx(50, abs=8)


def test_a_sample_that_suffices_is_taken_whole(texts: list[str]) -> None:
    assert sorted(even_sample(texts, 1 << 30)) == sorted(texts)
