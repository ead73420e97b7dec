"""The text of one sample while its tokens come: whole characters alone, up to the first stop string."""

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what bytes that are no UTF-8 decode to


class TextStream:
    """Give it token after token with `add`, and `finish` in the end; `text` is what the tokens so far certainly say.

    `decode` must decode a text as the joint parts of it, cut between characters. A character may take several tokens:
    until its last one the decoded text ends in U+FFFD, and waits.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop_strings: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._decode, self._stop_strings = decode, stop_strings
        self._longest = max(map(len, stop_strings), default=0)
        self._waiting: list[int] = []

    def add(self, token: int) -> bool:
        """Take a token; whether the text has reached a stop string, which is left out."""
        self._waiting.append(token)
        text = self._decode(self._waiting)
        if not text.endswith(REPLACEMENT):
            self._append(text)
        return self.stopped

    def finish(self) -> str:
        """The whole text; what is no character in the end becomes U+FFFD."""
        self._append(self._decode(self._waiting))
        return self.text

    @property
    def shown(self) -> int:
        """Characters of the text that no later token can take back: without an end that may begin a stop string."""
        if self.stopped:
            return len(self.text)
        starts = range(max(0, len(self.text) - self._longest + 1), len(self.text))
        return next((at for at in starts if self._begins_stop(self.text[at:])), len(self.text))

    def _begins_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stop_strings)

    def _append(self, text: str) -> None:
        self._waiting = []
        if self.stopped:
            return
        start = max(0, len(self.text) - self._longest + 1)  # a stop string may have begun before
        self.text += text
        found = [at for stop in self._stop_strings if (at := self.text.find(stop, start)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
