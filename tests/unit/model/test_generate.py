"""Generation: the cache changes nothing, neighbours change nothing, and every end is the right one."""

import pytest
import torch
import transformers

from dgpt.config import ModelConfig
from dgpt.errors import UserError
from dgpt.model.cache import KVCache
from dgpt.model.generate import generate, generate_texts
from dgpt.model.gpt import GPT
from dgpt.model.init import build_model
from dgpt.model.sampling import Sampling

CPU = torch.device("cpu")
SHAPES = {
    "gpt2": ModelConfig(n_layer=2, n_head=4, n_embd=32, seq_len=24, vocab_size=50, init_std=0.3),
    "llama_gqa": ModelConfig(shape="llama", n_layer=2, n_head=4, n_kv_head=2, n_embd=32, seq_len=24, vocab_size=50,
                             init_std=0.3),
}  # fmt: skip
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [27], [31, 41, 5], [9, 26, 5]]
GREEDY = Sampling(max_new_tokens=10, temperature=0)


@pytest.fixture(params=SHAPES, scope="module")
def model(request: pytest.FixtureRequest) -> GPT:
    return build_model(SHAPES[request.param], seed=1, device=CPU)


def forced(favourite: int) -> GPT:
    """A model that predicts `favourite` after every token: the head reads a constant that the final norm adds."""
    model = build_model(ModelConfig(n_layer=1, n_head=1, n_embd=8, seq_len=16, vocab_size=60), 0, CPU)
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.fill_(1.0)
        model.head.weight.zero_()
        model.head.weight[favourite] = 1.0
    return model


def slow_greedy(model: GPT, prompt: list[int], count: int) -> list[int]:
    """Reference: the whole text through the model again for each token."""
    tokens = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([tokens]))[0, -1, : model.config.vocab_size]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 4, 2], [1, 11]])
def test_logits_are_equal_with_and_without_the_cache(model: GPT, pieces: list[int]) -> None:
    tokens = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(0))
    cache = KVCache(2, 3, max_tokens=14, device=CPU)
    hidden = []
    for part in tokens.split(pieces, dim=1):
        hidden.append(model.hidden(part, cache=cache))
        cache.advance([part.size(1)] * 3)
    torch.testing.assert_close(model.head(torch.cat(hidden, dim=1)), model(tokens), atol=1e-5, rtol=1e-5)


def test_sequences_of_different_lengths_share_a_cache(model: GPT) -> None:
    lengths = [len(prompt) for prompt in PROMPTS]
    padded = torch.zeros(len(PROMPTS), max(lengths), dtype=torch.int64)
    for row, prompt in zip(padded, PROMPTS, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    cache = KVCache(2, len(PROMPTS), max_tokens=24, device=CPU)
    model.hidden(padded, cache=cache)
    cache.advance(lengths)
    more = torch.tensor([[7, 8]]).expand(len(PROMPTS), 2)
    logits = model.head(model.hidden(more, cache=cache))
    for row, prompt in zip(logits, PROMPTS, strict=True):
        torch.testing.assert_close(row, model(torch.tensor([[*prompt, 7, 8]]))[0, -2:], atol=1e-5, rtol=1e-5)


def test_greedy_batch_equals_the_slow_way_one_by_one(model: GPT) -> None:
    batch = [sample.tokens for sample in generate(model, PROMPTS, GREEDY)]
    assert batch == [slow_greedy(model, prompt, 10) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in batch}) == len(PROMPTS)


def test_a_sample_does_not_depend_on_its_neighbours(model: GPT) -> None:
    """Although some of them end early, by stop ids, and leave the batch to the others."""

    def tokens(prompts: list[list[int]], samples: int = 3, batch_size: int = 64) -> list[list[int]]:
        sampling = Sampling(max_new_tokens=12, temperature=1.3, top_k=20, top_p=0.9, seed=5)
        results = generate(model, prompts, sampling, samples=samples, batch_size=batch_size, stop_ids={10, 20, 30})
        return [sample.tokens for sample in results]

    together = tokens(PROMPTS)
    assert together == [sample for prompt in PROMPTS for sample in tokens([prompt])]
    assert together == tokens(PROMPTS, batch_size=2)
    assert together[::3] == tokens(PROMPTS[::-1], samples=1)[::-1]
    assert len({len(sample) for sample in together}) > 2
    assert len({tuple(sample) for sample in together if sample}) == sum(map(bool, together))


def test_the_seed_decides(model: GPT) -> None:
    runs = [[s.tokens for s in generate(model, PROMPTS, Sampling(max_new_tokens=6, seed=seed))] for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_more_tokens_continue_the_same_sample(model: GPT) -> None:
    short, long = (next(generate(model, [[1, 2]], Sampling(max_new_tokens=n, seed=3))).tokens for n in (5, 20))
    assert long[:5] == short


def test_the_repetition_penalty_counts_prompt_and_text_but_not_the_padding(model: GPT) -> None:
    """In a batch of unequal prompts, against the slow way: transformers pads with a token and then punishes it."""
    sampling = Sampling(max_new_tokens=12, temperature=0, repetition_penalty=2.5)
    penalty = transformers.RepetitionPenaltyLogitsProcessor(2.5)
    for sample in generate(model, PROMPTS, sampling):
        tokens = list(sample.prompt)
        for token in sample.tokens:
            logits = model(torch.tensor([tokens]))[:, -1, : model.config.vocab_size]
            assert token == int(penalty(torch.tensor([tokens]), logits).argmax())
            tokens.append(token)
        assert sample.tokens != slow_greedy(model, list(sample.prompt), 12)


def test_the_cache_is_allocated_once(model: GPT) -> None:
    """Although sequences end and leave it: the keys and values of the others move up in place."""
    cache = KVCache(2, 3, max_tokens=8, device=CPU)
    tokens = torch.randint(50, (3, 5), generator=torch.Generator().manual_seed(0))
    model.hidden(tokens, cache=cache)
    cache.advance([5, 3, 4])
    places = [(layer.k.data_ptr(), layer.v.data_ptr()) for layer in cache.layers]
    cache.keep([0, 2])
    logits = model.head(model.hidden(torch.tensor([[7], [8]]), cache=cache))
    assert places == [(layer.k.data_ptr(), layer.v.data_ptr()) for layer in cache.layers]
    for row, whole in zip(logits, ([*tokens[0].tolist(), 7], [*tokens[2, :4].tolist(), 8]), strict=True):
        torch.testing.assert_close(row[0], model(torch.tensor([whole]))[0, -1], atol=1e-5, rtol=1e-5)


def test_padded_vocabulary_rows_are_never_drawn() -> None:
    model = forced(favourite=60)  # of 64 rows, the first behind the vocabulary
    assert int(model(torch.tensor([[1]]))[0, 0].argmax()) == 60
    for temperature in (0, 1.0, 100.0):
        for sample in generate(model, [[1]], Sampling(max_new_tokens=12, temperature=temperature), samples=20):
            assert max(sample.tokens) < 60


def test_tokens_that_no_text_reaches_are_never_drawn() -> None:
    model = forced(favourite=7)
    for temperature in (0, 1.0, 100.0):
        for sample in generate(
            model, [[1]], Sampling(max_new_tokens=12, temperature=temperature), samples=20, never=[7]
        ):
            assert 7 not in sample.tokens


def test_it_ends_where_the_context_is_full(model: GPT) -> None:
    prompts = [[1] * 20, [2] * 23, [3]]
    results = list(generate(model, prompts, Sampling(max_new_tokens=22)))
    assert [len(r.tokens) for r in results] == [4, 1, 22]
    assert [r.reason for r in results] == ["context", "context", "length"]


def test_a_short_prompt_beside_a_long_one_may_still_fill_the_context(model: GPT) -> None:
    sampling = Sampling(max_new_tokens=100, temperature=0)
    results = list(generate(model, [[1] * 20, [3, 4]], sampling))
    assert results[1].tokens == slow_greedy(model, [3, 4], 22)


def test_stop_ids_end_a_sample_and_are_left_out(model: GPT) -> None:
    whole = slow_greedy(model, PROMPTS[0], 10)
    stop_id = whole[4]
    first = whole.index(stop_id)
    results = list(generate(model, PROMPTS, GREEDY, stop_ids={stop_id}))
    assert results[0].tokens == whole[:first]
    assert results[0].reason == "stop"
    for prompt, result in zip(PROMPTS[1:], results[1:], strict=True):
        assert result.tokens == slow_greedy(model, prompt, 10)[: len(result.tokens)]


def test_the_model_keeps_its_mode_and_has_no_dropout_meanwhile() -> None:
    config = SHAPES["gpt2"].model_copy(update={"dropout": 0.5})
    model = build_model(config, seed=1, device=CPU).train()
    plain = build_model(SHAPES["gpt2"], seed=1, device=CPU)
    assert next(generate(model, [[1, 2]], GREEDY)).tokens == slow_greedy(plain, [1, 2], 10)
    assert model.training


class Letters:
    """A tokenizer of one and two characters, so that text crosses tokens: 0 ends a document."""

    pieces = ("", *"abcdefghij", "ab", "bc", "cd")
    eod_id = 0
    vocab_size = len(pieces)
    unreachable = (1,)

    def encode(self, text: str) -> list[int]:
        return [self.pieces.index(letter) for letter in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.pieces[token] for token in tokens)


@pytest.fixture(scope="module")
def letters_model() -> GPT:
    config = SHAPES["llama_gqa"].model_copy(update={"vocab_size": Letters.vocab_size, "seq_len": 64})
    return build_model(config, seed=4, device=CPU)


def test_texts_are_the_decoded_samples(letters_model: GPT) -> None:
    sampling = Sampling(max_new_tokens=12, seed=1)
    texts = list(generate_texts(letters_model, Letters(), ["abc", "d"], sampling, samples=2))
    samples = list(generate(letters_model, [[1, 2, 3], [4]], sampling, samples=2, stop_ids=[0], never=[1]))
    assert [t.prompt for t in texts] == ["abc", "abc", "d", "d"]
    assert [t.text for t in texts] == [Letters().decode(s.tokens) for s in samples]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_stop_string_ends_the_text_even_across_tokens(letters_model: GPT, length: int) -> None:
    sampling = Sampling(max_new_tokens=40, seed=2)
    whole = next(generate_texts(letters_model, Letters(), ["abc"], sampling)).text
    stop_string = whole[5 : 5 + length]
    stopped = next(generate_texts(letters_model, Letters(), ["abc"], sampling, stop_strings=["zz", stop_string]))
    assert stopped.text == whole[: whole.index(stop_string)]
    assert stopped.reason == "stop"


def test_generation_ends_with_the_stop_string_and_not_later(letters_model: GPT) -> None:
    calls = []
    handle = letters_model.head.register_forward_hook(lambda *_: calls.append(1))
    sampling = Sampling(max_new_tokens=40, seed=2)
    stopped = next(generate_texts(letters_model, Letters(), ["abc"], sampling, stop_strings=["a", "b", "c", "d"]))
    handle.remove()
    assert not set("abcd") & set(stopped.text)
    assert len(calls) <= len(stopped.text) + 1


def test_a_stop_string_in_the_prompt_does_not_count(letters_model: GPT) -> None:
    sampling = Sampling(max_new_tokens=5, seed=2)
    plain, stopped = (
        next(generate_texts(letters_model, Letters(), ["hij"], sampling, stop_strings=s)).text for s in ([], ["hij"])
    )
    assert plain == stopped


def test_an_empty_prompt_starts_a_document(letters_model: GPT) -> None:
    text = next(generate_texts(letters_model, Letters(), [""], GREEDY)).text
    tokens = next(generate(letters_model, [[0]], GREEDY, stop_ids=[0], never=[1])).tokens
    assert text == Letters().decode(tokens)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    model = build_model(ModelConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=5, vocab_multiple=1), 0, CPU)
    with pytest.raises(UserError, match="14 tokens, the model 5"):
        next(generate_texts(model, Letters(), ["a"], GREEDY))


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[1], []], {}, "prompt 2 of 2 is empty"),
        ([[1] * 24], {}, "prompt 1 of 1 has 24 tokens and the model's seq_len is 24"),
        ([[1, 50]], {}, "token 50"),
        ([[-1]], {}, "token -1"),
        ([[1]], {"samples": 0}, "samples = 0"),
        ([[1]], {"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_bad_prompts_are_refused_before_the_first_pass(
    model: GPT, prompts: list[list[int]], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(model, prompts, GREEDY, **settings)
