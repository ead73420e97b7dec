"""A conversation as text: the one template that fine-tuning, `dgpt chat` and exported tokenizers share.

    <|system|>
    You are brief.
    <|user|>
    Is 7 prime?
    <|assistant|>
    Yes.[end of document]<|user|>
    ...

The markers are plain lines, so the tokenizer of any pretrained model can write them; no line of a message may be one.
An answer ends with the tokenizer's end-of-document token, which no text can encode to.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, TypedDict

from dgpt.data.prompts import is_unicode
from dgpt.errors import UserError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
MARKERS: dict[str, str] = {role: f"<|{role}|>" for role in ROLES}
STOP_STRINGS = tuple(f"\n{marker}" for marker in MARKERS.values())  # a model that forgot to end its answer

# The same for `tokenizer_config.json`; eos_token is the end-of-document token.
JINJA = """\
{%- for message in messages %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] | trim }}
{{- eos_token if message['role'] == 'assistant' else '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n' }}
{%- endif %}
"""


class Message(TypedDict):
    role: Role
    content: str


class ChatTokenizer(Protocol):
    """What `encode` needs of a tokenizer."""

    @property
    def eod_id(self) -> int: ...
    def encode(self, text: str, /) -> list[int]: ...


Segments = list[tuple[str, bool]]


def segments(messages: Sequence[Message], *, answer: bool) -> Segments:
    """The pieces of a conversation in order, and whether each is to be learnt: what the assistant says.

    Space around a message is dropped. answer: append the line after which the assistant is to write.
    Raises UserError for messages that are not a conversation (`check`).
    """
    check(messages)
    pieces: Segments = []
    for message in messages:
        learn, content = message["role"] == "assistant", message["content"].strip()
        header = f"{MARKERS[message['role']]}\n"
        _add_context(pieces, header if learn else f"{header}{content}\n")
        if learn:
            pieces.append((content, True))
    if answer:
        _add_context(pieces, f"{MARKERS['assistant']}\n")
    return pieces


def _add_context(pieces: Segments, text: str) -> None:
    """Joined with the piece before unless that is an answer: a tokenizer may merge across such a border."""
    if pieces and not pieces[-1][1]:
        text = pieces.pop()[0] + text
    pieces.append((text, False))


def prompt_completion(prompt: str, completion: str) -> Segments:
    """A plain pair without markers, of which the completion is to be learnt."""
    return [(prompt, False), (completion, True)]


def encode(pieces: Iterable[tuple[str, bool]], tokenizer: ChatTokenizer) -> tuple[list[int], list[bool]]:
    """Token ids, and for each whether it is to be learnt. A piece to be learnt ends with the end-of-document token."""
    ids: list[int] = []
    learn: list[bool] = []
    for text, learnt in pieces:
        new = tokenizer.encode(text) + [tokenizer.eod_id] * learnt
        ids += new
        learn += [learnt] * len(new)
    return ids, learn


def check(messages: object) -> None:
    """Raise UserError unless `messages` is a conversation. The caller says where it stands (file and line)."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise _refuse(f"messages = {messages!r}", "a conversation is a list of one message or more")
    for number, message in enumerate(messages, start=1):
        name = f"message {number} of {len(messages)}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise _refuse(f"{name} = {message!r}", "a message has a role and a content")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise _refuse(f"{name} has the role {role!r}", f"a role is one of {', '.join(ROLES)}")
        if role == "system" and number > 1:
            raise _refuse(f"{name} has the role 'system'", "instructions come first")
        _check_content(name, content)


def _check_content(name: str, content: object) -> None:
    if not isinstance(content, str) or not content.strip():
        raise _refuse(f"{name} has the content {content!r}", "a content is text, and not blank")
    if not is_unicode(content):
        raise _refuse(f"{name} is not valid Unicode: it holds half of a character", "text is Unicode")
    for marker in MARKERS.values():
        if marker in map(str.strip, content.splitlines()):
            raise _refuse(f"{name} has a line '{marker}'", "no line of a message is a marker of the template")


def _refuse(what: str, rule: str) -> UserError:
    example = '[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]'
    return UserError(what, rule=rule, fix=f"write it as {example}")
