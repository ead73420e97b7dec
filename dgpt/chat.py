"""`dgpt chat`: a conversation with an instruction-tuned model in the terminal, or through a pipe."""

import sys
from collections.abc import Generator, Iterator
from typing import TextIO

from dgpt.data.chat import STOP_STRINGS, Message, check, encode, segments
from dgpt.data.prompts import is_unicode
from dgpt.data.tokenizer import Tokenizer
from dgpt.errors import UserError
from dgpt.model.decode import Reason
from dgpt.model.generate import stream_text
from dgpt.model.gpt import GPT
from dgpt.model.sampling import Sampling

COMMANDS = "/reset starts anew, /exit or the end of the input ends"
CUT = {"length": "cut: --max-new-tokens is reached", "context": "cut: the model's context is full"}


class Chat:
    """What was said, and the next answer to it.

    When the model's seq_len no longer holds the conversation and an answer (`reserve` tokens), the oldest messages
    after the system's are dropped: `forgotten` counts them.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, sampling: Sampling, system: str = "") -> None:
        """Raises UserError for instructions that cannot stand in the template."""
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.reserve = max(1, min(sampling.max_new_tokens, model.config.seq_len // 4))
        self.system: list[Message] = [{"role": "system", "content": system}] if system else []
        if self.system:
            check(self.system)
        self.reset()

    def reset(self) -> None:
        """Forget all but the instructions."""
        self.messages: list[Message] = []
        self.forgotten = 0

    def ask(self, text: str) -> Generator[str, None, Reason]:
        """Yield the answer piece by piece; returns why it ended. What the reader has seen of it goes into the history.

        Raises UserError, and keeps nothing, for a text that is blank, has a line of the template, or does not fit.
        """
        question: Message = {"role": "user", "content": text}
        prompt = self._fit(question)
        parts: list[str] = []
        reason: Reason = ""
        try:
            stream = stream_text(self.model, self.tokenizer, prompt, self.sampling, stop_strings=STOP_STRINGS)
            reason = yield from _noted(stream, parts)
        finally:  # also when the reader stops it
            self._keep(question, {"role": "assistant", "content": "".join(parts)})
        return reason

    def _fit(self, question: Message) -> list[int]:
        """Token ids up to where the answer begins, after dropping as many old messages as it takes."""
        limit = self.model.config.seq_len - self.reserve
        while True:
            ids, _ = encode(segments([*self.system, *self.messages, question], answer=True), self.tokenizer)
            if len(ids) <= limit:
                return ids
            if not self.messages:
                raise UserError(f"the message and its instructions have {len(ids)} tokens",
                                rule=f"they and {self.reserve} tokens of an answer fit into the model's seq_len of "
                                     f"{self.model.config.seq_len}",
                                fix="say it in fewer words")  # fmt: skip
            del self.messages[:2]  # a question and its answer
            self.forgotten += 2

    def _keep(self, question: Message, answer: Message) -> None:
        """An answer that is blank or has a line of the template would not be read as what it is."""
        try:
            check([question, answer])
        except UserError:
            return
        self.messages += [question, answer]


def _noted(stream: Generator[str, None, Reason], parts: list[str]) -> Generator[str, None, Reason]:
    while True:
        try:
            piece = next(stream)
        except StopIteration as end:
            reason: Reason = end.value
            return reason
        parts.append(piece)
        yield piece


def converse(chat: Chat, source: TextIO, target: TextIO, notes: TextIO) -> None:
    """Answer each line of `source` on `target`; what is no answer goes to `notes`. A terminal is prompted."""
    if source.isatty():
        print(f"({COMMANDS}; Ctrl-C stops an answer)", file=notes)
    for line in _lines(source):
        if line == "/exit":
            return
        if line == "/reset":
            chat.reset()
            print("(new conversation)", file=notes, flush=True)
        elif line.startswith("/"):
            print(f"({line.split()[0]} is no command: {COMMANDS})", file=notes, flush=True)
        elif line:
            _answer(chat, line, target, notes)


def _answer(chat: Chat, line: str, target: TextIO, notes: TextIO) -> None:
    forgotten, note = chat.forgotten, ""
    try:
        if not is_unicode(line):
            raise UserError("the message is not valid UTF-8", rule="a message is Unicode text", fix="type it again")
        stream = chat.ask(line)
        while True:
            target.write(next(stream))
            target.flush()
    except StopIteration as end:
        note = CUT.get(end.value, "")
    except KeyboardInterrupt:
        stream.close()
        note = "stopped"
    except UserError as error:
        print(f"({error})", file=notes, flush=True)
        return
    target.write("\n")
    target.flush()
    if chat.forgotten > forgotten:
        note = f"the context is full: {chat.forgotten - forgotten} old messages were dropped" + f"; {note}" * bool(note)
    if note:
        print(f"({note})", file=notes, flush=True)


def _lines(source: TextIO) -> Iterator[str]:
    """Lines without space around them, until the end of the input or Ctrl-C."""
    if source is sys.stdin and source.isatty():
        import readline  # noqa: F401  # `input` then edits lines and knows those before

        try:
            while True:
                yield input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
    yield from map(str.strip, source)
