"""Extractive question answering: the answer is a span of the context, or there is none (arXiv:1810.04805, 4.2 and 4.3).

The model reads: question, end of document, a window of the context, end of document. It sees only what comes before, so
the question comes first; and the last token, which has seen all, stands for "no answer". A long context is read in
windows that overlap; the best span of all windows is taken, and "no answer" only if it wins in every window.

B batch, T tokens of the longest window
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dgpt.data.sampler import Integers
from dgpt.errors import UserError
from dgpt.model.gpt import GPT
from dgpt.model.heads import SpanFinder
from dgpt.tasks import squad
from dgpt.tasks.base import Answer, Example, Inputs, Scores, Task, in_batches
from dgpt.tasks.questions import right_answers
from dgpt.tasks.rows import Row


@dataclass(frozen=True)
class Window(Example):
    """A question and a part of its context."""

    first: int  # place of the first token of the context
    offset: int  # tokens of the context before this window
    span: tuple[int, int] = (-1, -1)  # first and last place of the answer; of the last token if it is not in here

    @property
    def last(self) -> int:
        """Place of the token that stands for "no answer"."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class Query:
    windows: list[Window]
    context: bytes  # UTF-8
    ends: Integers  # bytes up to the end of each token of the context


@dataclass
class Candidate:
    """The best span of a query so far."""

    score: float = -np.inf
    no_answer: float = np.inf  # lowest score of "no answer" in a window
    span: tuple[int, int] = field(default=(0, 0))  # first and last token of the context


class ExtractiveQa(Task):
    """Rows are {id, context, question, answers}, as in SQuAD."""

    def examples(self, row: Row) -> list[Example]:
        """Every window of the context; those without the first of the right answers learn "no answer"."""
        question = self._question(row)
        if len(question) > self.longest_question and self.too_long(row, len(question)):
            return []
        query, answers = self._query(row, question), right_answers(row, self.fields)
        if not answers:
            return [self._learning(window, None) for window in query.windows]
        text, start = answers[0]
        context = row.text(self.fields.context, "context")
        begin = len(context[:start].encode())
        first = int(np.searchsorted(query.ends, begin, side="right"))
        last = int(np.searchsorted(query.ends, begin + len(text.encode())))
        return [self._learning(window, (first, last)) for window in query.windows]

    def _learning(self, window: Window, answer: tuple[int, int] | None) -> Window:
        """The window with the place of the answer, given in tokens of the context."""
        shift = window.first - window.offset
        span = (window.last, window.last) if answer is None else (answer[0] + shift, answer[1] + shift)
        inside = window.first <= span[0] and span[1] < window.last
        return Window(window.ids, 1.0, window.first, window.offset, span if inside else (window.last, window.last))

    def model(self, gpt: GPT) -> GPT:
        return SpanFinder(gpt)

    def inputs(self, samples: Sequence[Sequence[Example]]) -> Inputs:
        """tokens, allowed and answers of dgpt.model.heads.SpanFinder."""
        windows = [w for sample in samples for w in sample if isinstance(w, Window)]
        return *self._inputs(windows), torch.tensor([w.span for w in windows])

    def _inputs(self, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
        tokens = self.padded([w.ids for w in windows])
        allowed = torch.zeros(tokens.shape, dtype=torch.bool)
        for b, w in enumerate(windows):
            allowed[b, w.first : w.last + 1] = True
        return tokens, allowed

    def query(self, row: Row) -> Query:
        """A question that is too long loses its end."""
        question = self._question(row)
        self.cut += len(question) > self.longest_question
        return self._query(row, question)

    @property
    def longest_question(self) -> int:
        """Tokens that leave room for two ends of documents and more than stride_tokens of the context in a window."""
        return self.max_tokens - self.settings.stride_tokens - 3

    def _question(self, row: Row) -> list[int]:
        """Raises UserError if no question fits."""
        ids = self.tokenizer.encode(row.text(self.fields.question, "question"))
        if self.longest_question < 1:
            raise self._no_room(row, len(ids), "lower task.stride_tokens")
        return ids

    def too_long(self, row: Row, length: int) -> bool:
        """Of a question, for a context is read in windows."""
        if self.config.data.over_long == "refuse":
            fix = 'shorten it, lower task.stride_tokens, or set data.over_long="truncate" or "skip"'
            raise self._no_room(row, length, fix)
        return super().too_long(row, length)

    def _no_room(self, row: Row, length: int, fix: str) -> UserError:
        left = max(self.max_tokens - length - 2, 0)
        return row.refuse(f"the question has {length} tokens and leaves {left} for the context",
                          f"a window of data.max_tokens, by default the model's seq_len = {self.max_tokens}, "
                          f"has room for more than task.stride_tokens = {self.settings.stride_tokens} of the context",
                          fix)  # fmt: skip

    def _query(self, row: Row, question_ids: list[int]) -> Query:
        if len(question_ids) > self.longest_question:  # cut to half of it, else windows would move token by token
            question_ids = question_ids[: (self.longest_question + 1) // 2]
        context, question = row.text(self.fields.context, "context"), [*question_ids, self.tokenizer.eod_id]
        ids = self.tokenizer.encode(context)
        room, stride = self.max_tokens - len(question) - 1, self.settings.stride_tokens
        windows = [Window(np.array([*question, *ids[start : start + room], self.tokenizer.eod_id], np.int32), 1.0,
                          len(question), start) for start in window_starts(len(ids), room, stride)]  # fmt: skip
        return Query(windows, context.encode(), self.tokenizer.byte_ends(ids))

    def gold(self, row: Row) -> list[str]:
        return [text for text, _ in right_answers(row, self.fields)]

    def answers(self, model: GPT, queries: Sequence[Query], batch_size: int) -> Iterator[Answer]:
        """The best span, '' for no answer; `score`: how much better the span is than no answer."""
        for batch in in_batches(queries, batch_size):
            found = [Candidate() for _ in batch]
            windows = [(number, window) for number, query in enumerate(batch) for window in query.windows]
            for part in in_batches(windows, batch_size):
                self._look(model, part, found)
            yield from map(self._answer, batch, found)

    def _look(self, model: GPT, part: Sequence[tuple[int, Window]], found: Sequence[Candidate]) -> None:
        """Improve the candidates by what the model sees in some windows."""
        device = model.wte.weight.device
        scores = model(*(x.to(device) for x in self._inputs([window for _, window in part]))).cpu()  # (B, T, 2)
        for (number, window), row in zip(part, scores, strict=True):
            best, candidate = best_span(row[window.first : window.last], self.settings.max_answer_tokens), found[number]
            candidate.no_answer = min(candidate.no_answer, float(row[window.last].sum()))
            if best[0] > candidate.score:
                candidate.score = best[0]
                candidate.span = best[1] + window.offset, best[2] + window.offset

    def _answer(self, query: Query, found: Candidate) -> Answer:
        margin = found.score - found.no_answer
        if -margin > self.settings.no_answer_threshold:
            return {"answer": "", "answer_start": -1, "score": round(margin, 4)}
        first, last = found.span
        begin, end = (int(query.ends[first - 1]) if first else 0), int(query.ends[last])
        text = query.context[begin:end].decode("utf-8", "ignore")
        start = len(query.context[:begin].decode("utf-8", "ignore")) + len(text) - len(text.lstrip())
        return {"answer": text.strip(), "answer_start": start, "score": round(margin, 4)}

    def scores(self, golds: Sequence[list[str]], answers: Sequence[Answer]) -> Scores:
        return squad_scores(golds, [answer["answer"] for answer in answers])


def squad_scores(golds: Sequence[list[str]], answers: Sequence[str]) -> Scores:
    """Exact match and F1, means over the questions."""
    pairs = list(zip(golds, answers, strict=True))
    return {"exact_match": float(np.mean([squad.exact_match(*pair) for pair in pairs])),
            "f1": float(np.mean([squad.f1(*pair) for pair in pairs]))}  # fmt: skip


def window_starts(length: int, room: int, stride: int) -> range:
    """Where windows of `room` tokens begin so that they cover `length`, each sharing `stride` with the one before."""
    return range(0, max(1, length - stride), room - stride)


def best_span(scores: Tensor, longest: int) -> tuple[float, int, int]:
    """Score, first and last place of the best span of at most `longest` tokens; scores (T, 2) of start and end."""
    start, end = scores.unbind(dim=-1)
    best = (float("-inf"), 0, 0)
    for more in range(min(longest, len(scores))):  # tokens after the first
        total = start[: len(start) - more] + end[more:]
        value, place = (x.item() for x in total.max(dim=0))
        if value > best[0]:
            best = (value, int(place), int(place) + more)
    return best
