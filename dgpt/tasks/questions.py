"""What both kinds of question answering read from a row: {id, context, question, answers: {text, answer_start}}."""

from collections.abc import Sequence
from typing import Any

from dgpt.config.task import FieldNames
from dgpt.tasks.rows import Row

Span = tuple[str, int]  # an answer, and the character of the context at which it starts


def right_answers(row: Row, fields: FieldNames) -> list[Span]:
    """Empty where the context has no answer. Raises UserError unless each one stands where it says."""
    spans, context = _spans(row, fields), row.text(fields.context, "context")
    for text, start in spans:
        if not text.strip():
            raise row.refuse("an answer is empty", "an answer is a part of the context",
                             "leave it out; a question without an answer has empty lists")  # fmt: skip
        if not 0 <= start <= len(context) - len(text):
            raise row.refuse(f"answer {text!r} at character {start} is outside the context of {len(context)}",
                             "an answer is a part of the context", "correct answer_start")  # fmt: skip
        if (there := context[start : start + len(text)]) != text:
            raise row.refuse(f"answer {text!r} is not at character {start}: there stands {there!r}",
                             "answer_start counts the characters of the context before the answer",
                             "correct answer_start or the text")  # fmt: skip
    return spans


def _spans(row: Row, fields: FieldNames) -> list[Span]:
    """The two lists of `datasets`, or a list of {text, answer_start} as in SQuAD's own file."""
    answers = row.nested(fields.answers, "answers")
    if isinstance(answers, dict):
        texts, starts = answers.get("text"), answers.get("answer_start")
    elif isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        texts, starts = ([answer.get(key) for answer in answers] for key in ("text", "answer_start"))
    else:
        texts = starts = None
    if not _all_are(texts, str) or not _all_are(starts, int) or len(texts) != len(starts):  # type: ignore[arg-type]
        raise row.refuse(f"field '{fields.answers}' holds {answers!r}",
                         'answers are {"text": [...], "answer_start": [...]}, with as many texts as whole numbers',
                         "correct it; a question without an answer has empty lists")  # fmt: skip
    return list(zip(texts, starts, strict=True))  # type: ignore[arg-type]


def _all_are(values: Any, kind: type) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and all(isinstance(v, kind) for v in values)
