"""Drawing a token: against the definition, computed another way."""

import math

import pytest
import torch
import transformers
from torch import Tensor

from dgpt.errors import UserError
from dgpt.model.sampling import NUCLEUS, Sampling, Seen, choose, random_numbers


def reference(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """Probabilities by the book, for one row without ties."""
    ranked = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or len(logits)]
    weight = {i: math.exp(logits[i] / temperature) for i in ranked}
    total = sum(weight.values())
    nucleus, mass = [], 0.0
    for i in ranked:
        nucleus.append(i)
        mass += weight[i] / total
        if mass >= top_p:
            break
    return [weight[i] / total / mass if i in nucleus else 0.0 for i in range(len(logits))]


def frequencies(logits: Tensor, sampling: Sampling, draws: int = 20_000) -> Tensor:
    """Share of each token when the random numbers are an even grid: exact to 1 / draws."""
    grid = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    tokens = choose(logits.expand(draws, -1), grid, sampling)
    return torch.bincount(tokens, minlength=logits.numel()) / draws


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (3.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.6), (0.7, 5, 0.8), (1.0, 1, 1.0),
     (1.0, 0, 1e-9), (1.0, 99, 1.0)],
)  # fmt: skip
def test_tokens_come_with_the_probabilities_of_the_definition(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0)) * 2
    expected = reference(logits.tolist(), temperature, top_k, top_p)
    seen = frequencies(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    torch.testing.assert_close(seen, torch.tensor(expected), atol=2e-4, rtol=0)


@pytest.mark.parametrize("top_p", [0.3, 0.99, 1.0])
@pytest.mark.parametrize("top_k", [0, 3000])
def test_a_large_vocabulary_needs_no_sort_and_comes_out_the_same(top_p: float, top_k: int) -> None:
    """A flat distribution, of which top-p takes more tokens than it looks at first."""
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(1)) / 4
    expected = torch.tensor(reference(logits.tolist(), 1.0, top_k, top_p))
    seen = frequencies(logits, Sampling(top_k=top_k, top_p=top_p), draws=50)
    assert set(seen.nonzero()[:, 0].tolist()) <= set(expected.nonzero()[:, 0].tolist())
    if top_p == 0.99 and not top_k:
        assert int((expected > 0).sum()) > NUCLEUS


@pytest.mark.parametrize("min_p", [0.02, 0.2, 0.9])
@pytest.mark.parametrize("top_k", [0, 6])
def test_min_p_keeps_what_transformers_keeps(min_p: float, top_k: int) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0)) * 2
    scores = logits[None]
    for warper in (transformers.TemperatureLogitsWarper(0.8), transformers.TopKLogitsWarper(top_k or 12),
                   transformers.MinPLogitsWarper(min_p)):  # fmt: skip
        scores = warper(None, scores)
    seen = frequencies(logits, Sampling(temperature=0.8, top_k=top_k, min_p=min_p))
    torch.testing.assert_close(seen, scores[0].softmax(dim=-1), atol=2e-4, rtol=0)


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    sequences, more = [[1, 2, 2, 3], [4, 5, 6, 7], [0, 0, 0, 19]], torch.tensor([8, 9, 1])
    seen = Seen(sequences, 20, torch.device("cpu"))
    seen.add(more)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    ids = torch.cat((torch.tensor(sequences), more[:, None]), dim=1)
    assert torch.equal(seen.penalise(logits, 1.3), theirs(ids, logits))
    seen.keep([0, 2])
    assert torch.equal(seen.penalise(logits[[0, 2]], 0.5), transformers.RepetitionPenaltyLogitsProcessor(0.5)(
        ids[[0, 2]], logits[[0, 2]]))  # fmt: skip


def test_temperature_zero_takes_the_largest_logit() -> None:
    logits = torch.randn(8, 30, generator=torch.Generator().manual_seed(0))
    for number in (0.0, 0.999999):
        tokens = choose(logits, torch.full((8,), number, dtype=torch.float64), Sampling(temperature=0, top_k=3))
        assert tokens.tolist() == logits.argmax(dim=-1).tolist()


def test_a_tiny_temperature_and_a_number_near_one_stay_in_range() -> None:
    logits = torch.tensor([[0.0, 5.0, -3.0]])
    last = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert choose(logits, last, Sampling(temperature=1e-12)).tolist() == [1]
    assert choose(logits, last, Sampling()).tolist() == [2]


def test_random_numbers_are_a_function_of_seed_prompt_and_sample() -> None:
    numbers = random_numbers(1, [1, 2], 0, 100)
    assert torch.equal(numbers, random_numbers(1, (1, 2), 0, 100))
    assert torch.equal(numbers[:7], random_numbers(1, [1, 2], 0, 7))
    others = [random_numbers(*a, 100) for a in ((2, [1, 2], 0), (1, [12], 0), (1, [1, 2], 1))]
    assert all(not torch.equal(numbers, other) for other in others)
    assert 0 <= numbers.min() < numbers.max() < 1


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -0.1}, {"temperature": math.inf}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.01},
     {"top_p": math.nan}, {"top_k": -1}, {"min_p": 1.0}, {"min_p": -0.1}, {"repetition_penalty": 0.0},
     {"repetition_penalty": math.inf}, {"max_new_tokens": 0}],
)  # fmt: skip
def test_a_value_out_of_range_is_named_with_its_rule(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(UserError, match=rf"{name} = .* cannot be used\n  rule: {name} is .*\n  fix:"):
        Sampling(**settings)  # type: ignore[arg-type]
