"""Windows cover the context, answers are where they stand in the text, and the best span is the best of all spans."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dgpt.data.tokenizer import Tokenizer
from dgpt.errors import UserError
from dgpt.tasks.base import Task
from dgpt.tasks.extractive_qa import Candidate, Query, Window, best_span, window_starts
from dgpt.tasks.rows import Row

MakeTask = Callable[..., Task]
CONTEXT = "Ünï ba fe 日本 gio kouren, la_x 🙂 ni12 " * 12


def row(**values: Any) -> Row:
    return Row("file 'x.jsonl', line 7", values)


def test_windows_cover_the_context_and_overlap_by_the_stride() -> None:
    for length, room, stride in itertools.product(range(1, 60), (5, 9, 20), (1, 4)):
        starts = list(window_starts(length, room, stride))
        covered = {at for start in starts for at in range(start, min(start + room, length))}
        assert covered == set(range(length))
        assert all(b - a == room - stride for a, b in itertools.pairwise(starts))
        assert len(starts) == 1 or starts[-2] + room < length  # none too many


@pytest.mark.parametrize("answer", ["日本", "kouren", "🙂", "Ünï ba", "n", "ni12 Ünï"])
def test_an_answer_comes_back_from_its_tokens(make_task: MakeTask, tokenizer: Tokenizer, answer: str) -> None:
    """In every window that holds it whole, and the text that its span stands for contains it and little more."""
    task = make_task("extractive_qa", stride_tokens=20)
    start = CONTEXT.index(answer, 100)
    question = row(context=CONTEXT, question="ba?", answers={"text": [answer], "answer_start": [start]})
    query, inside = task.query(question), 0
    assert isinstance(query, Query)
    for window in task.examples(question):
        assert isinstance(window, Window)
        first, last = window.span
        if first == window.last:
            continue
        inside += 1
        assert answer in tokenizer.decode(window.ids[first : last + 1])
        found = Candidate(1.0, 0.0, (first - window.first + window.offset, last - window.first + window.offset))
        told = task._answer(query, found)
        assert answer in told["answer"]
        assert CONTEXT[told["answer_start"] :].startswith(told["answer"])
        assert 0 <= start - told["answer_start"] <= len(told["answer"]) - len(answer)
    assert inside >= 1


def test_without_an_answer_the_last_token_is_learnt(make_task: MakeTask, tokenizer: Tokenizer) -> None:
    task = make_task("extractive_qa", stride_tokens=20)
    windows = task.examples(row(context=CONTEXT, question="ba?", answers={"text": [], "answer_start": []}))
    assert len(windows) > 2
    tokens, allowed, answers = task.inputs([[window] for window in windows])
    assert tokens is not None
    assert allowed is not None
    assert answers is not None
    for b, window in enumerate(windows):
        place = answers[b, 0].item()
        assert answers[b].tolist() == [window.length - 1] * 2
        assert tokens[b, place] == tokenizer.eod_id
        assert allowed[b].nonzero().flatten().tolist() == [*range(window.first, window.length)]


@pytest.mark.parametrize("rule", ["refuse", "skip", "truncate"])
def test_a_question_that_leaves_no_room_goes_by_the_rule(make_task: MakeTask, rule: str, tokenizer: Tokenizer) -> None:
    task = make_task("extractive_qa", data={"over_long": rule}, stride_tokens=20)
    long = row(context=CONTEXT, question="ba " * 99, answers={"text": [], "answer_start": []})
    if rule == "refuse":
        with pytest.raises(UserError, match=r"line 7: the question has .* tokens and leaves 0 for the context"):
            task.examples(long)
    windows = task.examples(long) if rule != "refuse" else []
    assert bool(windows) == (rule == "truncate")
    assert task.take_counts() == {"refuse": (0, 0), "skip": (1, 0), "truncate": (0, 1)}[rule]
    query = task.query(long)  # who asks a trained model gets an answer
    assert task.take_counts() == (0, 1)
    for window in (*windows, *query.windows):
        assert len(window.ids) <= task.max_tokens == 96
        assert isinstance(window, Window)
        assert window.ids[: window.first].tolist() == [*tokenizer.encode("ba " * 99)[:37], tokenizer.eod_id]
    assert query.windows[1].offset == 96 - 37 - 2 - 20


def test_the_best_span_is_the_best_of_all() -> None:
    scores = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    for longest in (1, 3, 40, 99):
        spans = {(i, j): float(scores[i, 0] + scores[j, 1]) for i in range(40) for j in range(i, min(40, i + longest))}
        best = max(spans, key=lambda span: spans[span])
        assert best_span(scores, longest) == (pytest.approx(spans[best]), *best)


def test_no_answer_wins_only_above_the_threshold_and_in_every_window(make_task: MakeTask) -> None:
    query = make_task("extractive_qa", stride_tokens=20).query(row(context=CONTEXT, question="ba?"))
    for threshold, expected in ((0.0, ""), (1.9, ""), (2.1, "Ünï ba fe")):
        task = make_task("extractive_qa", no_answer_threshold=threshold)
        answer = task._answer(query, Candidate(score=1.0, no_answer=3.0, span=(0, 4)))
        assert expected.startswith(answer["answer"])
        assert bool(answer["answer"]) == bool(expected)
        assert answer["score"] == -2.0


def test_windows_are_asked_in_batches_of_any_size_with_one_result(make_task: MakeTask, random_run: Any) -> None:
    from dgpt.model.init import build_model

    task = make_task("extractive_qa", stride_tokens=20, no_answer_threshold=50.0)
    queries = [task.query(row(context=CONTEXT[n:], question="ba?")) for n in range(5)]
    model = task.model(build_model(task.config.model, 3, torch.device("cpu"))).eval()
    with torch.no_grad():
        for parameter in model.task_head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
        one, many = (list(task.answers(model, queries, size)) for size in (1, 7))
    assert [a["answer_start"] for a in one] == [a["answer_start"] for a in many]
    assert len({a["answer"] for a in one}) > 1
