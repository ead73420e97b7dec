"""Generative question answering: the answer is written after context and question."""

from collections.abc import Iterator, Sequence
from typing import Any

from dgpt.data import chat
from dgpt.model.gpt import GPT
from dgpt.tasks.base import Answer, Scores
from dgpt.tasks.extractive_qa import squad_scores
from dgpt.tasks.generation import Generation
from dgpt.tasks.questions import right_answers
from dgpt.tasks.rows import Row

PROMPT = "{context}\n\nQuestion: {question}\nAnswer:"


class GenerativeQa(Generation):
    """Rows are {id, context, question, answers}, as in SQuAD; the first answer is learnt."""

    def gold(self, row: Row) -> list[str]:
        return [text for text, _ in right_answers(row, self.fields)]

    def answers(self, model: GPT, queries: Sequence[list[int]], batch_size: int) -> Iterator[Answer]:
        """Greedily written; '' for no answer."""
        for answer in super().answers(model, queries, batch_size):
            text = answer["completion"].strip()
            yield {"answer": "" if text == self.settings.no_answer_text else text}

    def scores(self, golds: Sequence[Any], answers: Sequence[Answer]) -> Scores:
        return squad_scores(golds, [answer["answer"] for answer in answers])

    def _pieces(self, row: Row) -> chat.Segments:
        answer = next(iter(self.gold(row)), self.settings.no_answer_text)
        return chat.prompt_completion(self._question(row)[0][0], f" {answer}")

    def _question(self, row: Row) -> chat.Segments:
        context, question = row.text(self.fields.context, "context"), row.text(self.fields.question, "question")
        return [(PROMPT.format(context=context, question=question), False)]
