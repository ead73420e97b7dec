"""Generation: a text after a prompt, or the next words of the assistant in a conversation. Only the answer is learnt.

B batch, T tokens of the longest sample
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgpt.data import chat
from dgpt.errors import UserError
from dgpt.model.generate import generate
from dgpt.model.gpt import GPT
from dgpt.model.loss import IGNORE
from dgpt.model.sampling import Sampling
from dgpt.tasks.base import Answer, Example, Ids, Inputs, Scores, Task
from dgpt.tasks.rows import Row


@dataclass(frozen=True)
class TextExample(Example):
    """Tokens of prompt and answer; each is predicted from those before it."""

    learn: NDArray[np.bool_]  # which tokens are learnt

    @property
    def length(self) -> int:
        return len(self.ids) - 1

    @property
    def targets(self) -> Ids:
        return np.where(self.learn[1:], self.ids[1:], IGNORE)


class Generation(Task):
    """Rows are {prompt, completion}, or {messages: [{role, content}, ...]}."""

    def examples(self, row: Row) -> list[Example]:
        ids, learn = chat.encode(self._pieces(row), self.tokenizer)
        if learn[0]:  # without a prompt a new document begins
            ids, learn = [self.tokenizer.eod_id, *ids], [False, *learn]
        if len(ids) - 1 > self.max_tokens:
            if self.too_long(row, len(ids) - 1):
                return []
            ids, learn = ids[-self.max_tokens - 1 :], learn[-self.max_tokens - 1 :]
        return [TextExample(np.array(ids, np.int32), float(sum(learn[1:])), np.array(learn))]

    def model(self, gpt: GPT) -> GPT:
        return gpt

    def inputs(self, samples: Sequence[Sequence[Example]]) -> Inputs:
        """tokens, targets (B, T; -100 where nothing is learnt), documents (B, T), or None with one example a sample."""
        joined = [[e for e in sample if isinstance(e, TextExample)] for sample in samples]
        tokens = self.padded([np.concatenate([e.ids[:-1] for e in sample]) for sample in joined])
        targets = self.padded([np.concatenate([e.targets for e in sample]) for sample in joined], IGNORE)
        if all(len(sample) == 1 for sample in joined):
            return tokens, targets, None
        numbers = [np.repeat(np.arange(len(s), dtype=np.int32), [e.length for e in s]) for s in joined]
        return tokens, targets, self.padded(numbers, max(map(len, joined)))

    def query(self, row: Row) -> list[int]:
        """The prompt, cut at its beginning so that the answer fits behind it; half of the context is for the prompt."""
        ids = chat.encode(self._question(row), self.tokenizer)[0] or [self.tokenizer.eod_id]
        room = max(self.config.model.seq_len - self.settings.max_new_tokens, self.config.model.seq_len // 2)
        self.cut += len(ids) > room
        return ids[-room:]

    def learnt(self, row: Row) -> Row:
        if not row.has(self.fields.messages):
            return row
        return Row(row.place, row.values | {self.fields.messages: self._messages(row)})

    def gold(self, row: Row) -> Any:
        if not row.has(self.fields.messages):
            return row.text(self.fields.completion, "completion").strip()
        return str(self._messages(row)[-1]["content"]).strip()

    def answers(self, model: GPT, queries: Sequence[list[int]], batch_size: int) -> Iterator[Answer]:
        """Greedy continuations."""
        sampling = Sampling(max_new_tokens=self.settings.max_new_tokens, temperature=0)
        for sample in generate(model, queries, sampling, vocab_size=self.tokenizer.vocab_size,
                               never=self.tokenizer.unreachable, stop_ids=(self.tokenizer.eod_id,),
                               batch_size=batch_size):  # fmt: skip
            yield {"completion": self.tokenizer.decode(sample.tokens)}

    def scores(self, golds: Sequence[Any], answers: Sequence[Answer]) -> Scores:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        texts = [answer["completion"].strip() for answer in answers]
        rouge = [scorer.score(gold, text)["rougeL"].fmeasure for gold, text in zip(golds, texts, strict=True)]
        exact = [gold == text for gold, text in zip(golds, texts, strict=True)]
        return {"rouge_l": float(np.mean(rouge)), "exact_match": float(np.mean(exact))}

    def _pieces(self, row: Row) -> chat.Segments:
        if not row.has(self.fields.messages):
            prompt = row.text(self.fields.prompt, "prompt", empty=True)
            return chat.prompt_completion(prompt, row.text(self.fields.completion, "completion"))
        messages = self._messages(row)  # nothing is learnt of what comes after the last answer
        if messages[-1]["role"] != "assistant":
            raise row.refuse("no message of the assistant", "a conversation has an answer to learn",
                             "add one, or leave the row out")  # fmt: skip
        return chat.segments(messages, answer=False)

    def _question(self, row: Row) -> chat.Segments:
        if not row.has(self.fields.messages):
            return [(row.text(self.fields.prompt, "prompt", empty=True), False)]
        messages = self._checked(row)
        before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        return chat.segments(before, answer=True)

    def _messages(self, row: Row) -> list[chat.Message]:
        """Up to the last answer, if there is one."""
        messages = self._checked(row)
        last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=len(messages) - 1)
        return messages[: last + 1]

    def _checked(self, row: Row) -> list[chat.Message]:
        messages = row.nested(self.fields.messages, "messages")
        try:
            chat.check(messages)
        except UserError as error:
            raise row.refuse(error.what, error.rule, error.fix) from None
        return messages  # type: ignore[no-any-return]
