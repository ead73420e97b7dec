"""`dgpt generate` and `dgpt chat`."""

import io
import json
import sys
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dgpt import outcome
from dgpt.errors import UserError

if TYPE_CHECKING:
    from dgpt.data.prompts import Row
    from dgpt.data.tokenizer import Tokenizer
    from dgpt.model.gpt import GPT
    from dgpt.model.sampling import Sampling

RULE = "-" * 40  # between continuations on a terminal


def generate(options: Namespace) -> int:
    from dgpt.generate import load_model

    if options.stream and options.output:
        raise UserError(f"--stream with --output = '{options.output}'", rule="a stream is for who reads along",
                        fix="leave one of them away")  # fmt: skip
    sampling, rows = sampling_of(options), _rows(options)
    check_new(options.output)
    model, tokenizer = load_model(options.model)
    if options.stream:
        _stream(model, tokenizer, rows, sampling, options)
    else:
        _whole(model, tokenizer, rows, sampling, options)
    return outcome.DONE


def chat(options: Namespace) -> int:
    from dgpt.chat import Chat, converse
    from dgpt.generate import load_model

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no UTF-8 is for `converse` to refuse
    sampling = sampling_of(options)
    model, tokenizer = load_model(options.model)
    converse(Chat(model, tokenizer, sampling, options.system), sys.stdin, sys.stdout, sys.stderr)
    return outcome.DONE


def sampling_of(options: Namespace) -> "Sampling":
    from dgpt.model.sampling import Sampling

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    return Sampling(**{name: getattr(options, name) for name in names})


def _rows(options: Namespace) -> "list[Row]":
    """The prompts of the command line and then those of the file; without any, the start of a document."""
    from dgpt.data.prompts import is_unicode, read_prompts

    for number, prompt in enumerate(options.prompts, start=1):
        if not is_unicode(prompt):
            raise UserError(f"prompt {number} = {prompt!r} is not valid UTF-8", rule="a prompt is Unicode text",
                            fix="correct its encoding, or put it into a UTF-8 file for --prompts-file")  # fmt: skip
    rows: list[Row] = [{options.field: prompt} for prompt in options.prompts]
    if options.prompts_file:
        rows += read_prompts(options.prompts_file, options.field)
    return rows or [{options.field: ""}]


def check_new(output: Path | None) -> None:
    """Raises UserError for a file that is there: results take the place of nothing."""
    if output and output.exists():
        raise UserError(f"--output = '{output}' exists", rule="results go to a new file",
                        fix="give another name, or move it away")  # fmt: skip


def _whole(model: "GPT", tokenizer: "Tokenizer", rows: "list[Row]", sampling: "Sampling", options: Namespace) -> None:
    from dgpt.model.generate import generate_texts
    from dgpt.progress import count_bar

    completions = generate_texts(
        model, tokenizer, [row[options.field] for row in rows], sampling, samples=options.samples,
        stop_strings=options.stop, batch_size=options.batch_size,
    )  # fmt: skip
    with ExitStack() as stack:
        file = stack.enter_context(_create(options.output)) if options.output else None
        advance = stack.enter_context(count_bar("generate", len(rows) * options.samples, enabled=file is not None))
        for number, completion in enumerate(completions):
            if file is None:
                print(
                    f"{RULE}\n" * bool(number) + rows[number // options.samples][options.field] + completion.text,
                    flush=True,
                )
            else:
                sample = {"completion": completion.text, "reason": completion.reason}
                row = rows[number // options.samples] | {"sample": number % options.samples} | sample
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
            advance(1)


def _create(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "x", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output = '{path}' cannot be written: {error.strerror}", rule="results go to a new file",
                        fix="give a file in a folder of yours") from None  # fmt: skip


def _stream(model: "GPT", tokenizer: "Tokenizer", rows: "list[Row]", sampling: "Sampling", options: Namespace) -> None:
    """One continuation after the other, so `batch_size` has no say."""
    from dgpt.model.generate import check_count, check_prompt, encode_prompt, stream_text

    check_count("samples", options.samples)
    encoded = [encode_prompt(tokenizer, row[options.field]) for row in rows]
    for number, prompt in enumerate(encoded, start=1):
        check_prompt(f"prompt {number} of {len(rows)}", prompt, model.config.seq_len, tokenizer.vocab_size)
    for place in range(len(rows) * options.samples):
        number, sample = divmod(place, options.samples)
        print(f"{RULE}\n" * bool(place) + rows[number][options.field], end="", flush=True)
        for piece in stream_text(model, tokenizer, encoded[number], sampling, number=sample, stop_strings=options.stop):
            print(piece, end="", flush=True)
        print()
