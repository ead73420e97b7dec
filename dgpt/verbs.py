"""What each verb does with its options. Heavy imports happen in the verb, so that `dgpt --help` is quick."""

import sys
from argparse import Namespace
from itertools import pairwise
from pathlib import Path

from dgpt import outcome
from dgpt.config import RunConfig
from dgpt.errors import UserError


def prepare(config: RunConfig, options: Namespace) -> int:
    from rich.console import Console

    from dgpt.data import inspect
    from dgpt.data import prepare as preparing

    console = Console()
    if options.inspect:
        inspect.inspect(config.data.path, console=console)
    elif options.verify:
        inspect.verify(config.data.path, console=console)
    else:
        preparing.prepare(config, console=console)
    return outcome.DONE


def pretrain(config: RunConfig, options: Namespace) -> int:
    start_processes(options.nproc)
    from dgpt.pretrain import pretrain

    return pretrain(config)


def parity(config: RunConfig, options: Namespace) -> int:
    start_processes(options.nproc)
    from dgpt.parallel.parity import compare

    return outcome.DONE if compare(config, options.steps, options.tolerance) else outcome.FAILED


def generate(options: Namespace) -> int:
    from dgpt.generate import load_model
    from dgpt.model.generate import generate_texts
    from dgpt.model.sampling import Sampling

    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_k, options.top_p, options.seed)
    prompts = options.prompts + _lines(options.prompts_file) or [""]
    for number, prompt in enumerate(prompts, start=1):
        if not _is_unicode(prompt):
            raise UserError(f"prompt {number} = {prompt!r} is not valid UTF-8", rule="a prompt is Unicode text",
                            fix="correct its encoding, or put it into a UTF-8 file for --prompts-file")  # fmt: skip
    model, tokenizer = load_model(options.model)
    for number, completion in enumerate(
        generate_texts(model, tokenizer, prompts, sampling, samples=options.samples, stop_strings=options.stop,
                       batch_size=options.batch_size)
    ):  # fmt: skip
        if number:
            print("-" * 40)
        print(completion.prompt + completion.text, flush=True)
    return outcome.DONE


def tensorboard(options: Namespace) -> int:
    from dgpt.train.board import serve

    serve(options.run_dir, options.port)
    return outcome.DONE


def start_processes(nproc: int | None) -> None:
    """Become torchrun if the verb wants several processes; come back in each of them, or at once if one is enough."""
    from dgpt import launch

    processes = launch.local_processes(nproc)
    if launch.needs_torchrun(processes):
        launch.launch(["-m", "dgpt.cli", *_without_nproc(sys.argv[1:])], processes)


def _without_nproc(arguments: list[str]) -> list[str]:
    """The workers' command line. torchrun takes --nproc for an abbreviation of its own option."""
    kept = [word for before, word in pairwise(["", *arguments]) if "--nproc" not in (before, word)]
    return [word for word in kept if not word.startswith("--nproc=")]


def _is_unicode(text: str) -> bool:
    """Python hands on bytes of the command line that are not UTF-8 as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _lines(path: Path | None) -> list[str]:
    """The prompts of a file."""
    if path is None:
        return []
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts-file = '{path}' cannot be read: {error}", rule="a UTF-8 file, one prompt per line",
                        fix="correct the path or the file") from None  # fmt: skip
