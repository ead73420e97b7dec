"""Exact match and F1 as the official script of SQuAD 2.0 gives them."""

import random
import re
import string
from collections import Counter

import pytest

from dgpt.tasks.squad import exact_match, f1


def official_normal(s: str) -> str:
    """normalize_answer of evaluate-v2.0.py, stated step by step."""
    s = s.lower()
    s = "".join(ch for ch in s if ch not in set(string.punctuation))
    s = re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", s)
    return " ".join(s.split())


def official_f1(gold: str, predicted: str) -> float:
    """compute_f1 of evaluate-v2.0.py."""
    gold_toks, pred_toks = official_normal(gold).split(), official_normal(predicted).split()
    same = sum((Counter(gold_toks) & Counter(pred_toks)).values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if same == 0:
        return 0
    precision, recall = 1.0 * same / len(pred_toks), 1.0 * same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


@pytest.mark.parametrize(
    ("gold", "predicted", "em", "score"),
    [
        (["Denver Broncos"], "the Denver Broncos!", 1, 1),
        (["Denver Broncos"], "Broncos", 0, 2 / 3),
        (["a cat", "the dog"], "dog", 1, 1),
        ([], "", 1, 1),
        ([], "something", 0, 0),
        (["something"], "", 0, 0),
        (["x x y"], "x y y", 0, 2 / 3),
        (["the"], "", 1, 1),  # nothing is left of the right answer: then there is none
    ],
)
def test_known_cases(gold: list[str], predicted: str, em: float, score: float) -> None:
    assert exact_match(gold, predicted) == em
    assert f1(gold, predicted) == pytest.approx(score)


def test_as_the_official_script_on_random_answers() -> None:
    rng, words = random.Random(0), ["the", "A", "cat", "cat's", "dog,", "(dog)", "Ünï", "7", "an", "-"]
    for _ in range(2000):
        golds = [" ".join(rng.choices(words, k=rng.randrange(4))) for _ in range(rng.randrange(4))]
        predicted = " ".join(rng.choices(words, k=rng.randrange(4)))
        real = [g for g in golds if official_normal(g)] or [""]
        assert exact_match(golds, predicted) == max(official_normal(g) == official_normal(predicted) for g in real)
        assert f1(golds, predicted) == pytest.approx(max(official_f1(g, predicted) for g in real))
