"""Exact match and F1 of answers as SQuAD 2.0 computes them (arXiv:1806.03822, its evaluate-v2.0.py), from 0 to 1."""

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(gold: Sequence[str], predicted: str) -> float:
    """1 if the answer is one of the right ones, but for case, punctuation, articles and space; '' means no answer."""
    return max(float(_normal(predicted) == _normal(answer)) for answer in _real(gold))


def f1(gold: Sequence[str], predicted: str) -> float:
    """Of the words of the answer and of the right answer that is nearest to it."""
    return max(_f1(_normal(answer).split(), _normal(predicted).split()) for answer in _real(gold))


def _real(gold: Sequence[str]) -> list[str]:
    """A question without any right answer has the right answer ''."""
    return [answer for answer in gold if _normal(answer)] or [""]


def _normal(text: str) -> str:
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def _f1(gold: list[str], predicted: list[str]) -> float:
    if not gold or not predicted:
        return float(gold == predicted)
    common = (Counter(gold) & Counter(predicted)).total()
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall) if common else 0.0
