"""`dgpt prepare`: sources -> tokenizer -> units, in parallel -> shards -> index.

Each step leaves only whole files, so it can be ended at any moment; the next start goes on to the same bytes.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from dgpt.config import RunConfig
from dgpt.data.assemble import write_index
from dgpt.data.blocks import is_held_out
from dgpt.data.inspect import summary
from dgpt.data.preparation import (
    WORK_FOLDER,
    Preparation,
    alone_in,
    find_preparation,
    is_complete,
    start_or_continue,
)
from dgpt.data.shards import check_sizes, read_index
from dgpt.data.sources import documents, units
from dgpt.data.tokenizer import SETTINGS_FILE, Tokenizer, load_existing, load_tokenizer
from dgpt.data.tokenizer_training import even_sample, train_tokenizer
from dgpt.data.work import tokenise_units, worker_processes
from dgpt.errors import UserError

SAMPLE_FROM = 4  # times tokenizer.train_bytes: how much text is read to draw the tokenizer's sample from


def prepare(config: RunConfig, *, console: Console) -> None:
    """Prepare data.path, or go on with it, or see that it is done. Raises UserError for what the user can mend."""
    folder = Path(config.data.path)
    if is_complete(config):
        check_sizes(folder, read_index(folder))
        shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)  # of a start that was ended at its very last step
        console.print(f"{folder} is prepared already, with these settings: nothing to do")
    else:
        worker_processes(config.data.num_workers)  # a mistake is said before the tokenizer is trained
        with alone_in(folder):
            _prepare(find_preparation(config), console)
    console.print(summary(folder))


def _prepare(job: Preparation, console: Console) -> None:
    begun = start_or_continue(job)
    size = f"{job.disk_bytes / 1e6:.1f} MB in {sum(map(len, job.files))} files"
    console.print(f"{'going on with' if begun else 'preparing'} {job.folder}: {', '.join(job.names)} ({size})")
    tokenizer = _tokenizer(job, console)
    counts = tokenise_units(job, console)
    if not any(unit.train_tokens for of_source in counts for unit in of_source):
        raise _nothing_to_train_on(job)
    write_index(job, counts, tokenizer, console)
    shutil.rmtree(job.work)


def _tokenizer(job: Preparation, console: Console) -> Tokenizer:
    """The stored tokenizer of an earlier start; else the given one, or a new one."""
    settings = job.config.tokenizer
    if (job.work / SETTINGS_FILE).exists():
        return load_tokenizer(job.work)
    if settings.kind != "train":
        tokenizer = load_existing(settings)
    else:
        with console.status("reading text for the tokenizer"):
            sample = even_sample(_training_texts(job), settings.train_bytes)
        if not sample:
            raise _nothing_to_train_on(job)
        what = f"a {settings.model_type} tokenizer of {settings.vocab_size} ids on {sum(map(len, sample)) / 1e6:.1f} MB"
        with console.status(f"training {what}"):
            tokenizer = train_tokenizer(settings, sample)
    tokenizer.save(job.work)
    return tokenizer


def _training_texts(job: Preparation) -> Iterator[str]:
    """Documents to draw the tokenizer's sample from, none of them held out: of every n-th unit, so that files of any
    size are read in bounded time; of a stream the first ones."""
    data, budget = job.config.data, SAMPLE_FROM * job.config.tokenizer.train_bytes
    stride = 1 + job.disk_bytes // budget
    for number, (source, files) in enumerate(zip(data.sources, job.files, strict=True)):
        left = budget
        for unit in units(number, source, files, job.unit_bytes):
            if left < 0:
                break
            for text in documents(unit, source) if source.dataset or unit.number % stride == 0 else ():
                encoded = text.encode()
                left -= len(encoded)
                if not is_held_out(encoded, data.val_fraction):
                    yield text


def _nothing_to_train_on(job: Preparation) -> UserError:
    return UserError(f"no documents found to train on in {', '.join(job.names)}: they are empty, or all are held out",
                     rule="the sources hold text, and data.val_fraction leaves most of the documents for training",
                     fix="give more documents; document_bytes of a source cuts a single text file into many",
                     )  # fmt: skip
