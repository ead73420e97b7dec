"""A trained model in one process, for sampling: from a run folder, a checkpoint or an export, of any topology."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from dgpt.checkpoint.best import best_of
from dgpt.checkpoint.files import FOLDER, step_of
from dgpt.checkpoint.find import Found, open_checkpoint
from dgpt.checkpoint.format import MANIFEST, CheckpointError
from dgpt.data.tokenizer import SETTINGS_FILE, Tokenizer, load_tokenizer
from dgpt.errors import UserError
from dgpt.model.gpt import GPT
from dgpt.model.heads import HeadedGPT
from dgpt.storage import Place, place

Result = TypeVar("Result")


def load_model(path: str | Place) -> tuple[GPT, Tokenizer]:
    """The model in fp32 on the GPU if there is one, and its tokenizer. Raises UserError if `path` holds neither."""
    return use_whole(path, _load_model)


def _load_model(found: Found) -> tuple[GPT, Tokenizer]:
    from dgpt.finetuned import whole_model

    tokenizer = tokenizer_of(found)
    model = whole_model(found, tokenizer, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(model, HeadedGPT):
        raise UserError(f"{found.folder} was fine-tuned to judge texts", rule="text is written by a language model",
                        fix="ask this one with `dgpt predict`, or give the model that it started from")  # fmt: skip
    return model.eval(), tokenizer


def use_whole(path: str | Place, use: Callable[[Found], Result]) -> Result:
    """`use` of the checkpoint that a user's path means, and of the next older one if a file of it turns out damaged.

    The next one, too, if a run that goes on has deleted it. Raises CheckpointError if `path` names that very
    checkpoint, or if none is whole.
    """
    bad: dict[Place, str] = {}
    while True:
        found = choose(path, bad)
        try:
            return use(found)
        except CheckpointError as error:
            of_this = str(error.where).startswith(str(found.folder))
            if not of_this or found.folder == place(path) or found.folder in bad:
                raise
            bad[found.folder] = error.summary


def choose(path: str | Place, bad: Mapping[Place, str] | None = None) -> Found:
    """The checkpoint that a user's path means: of a run its best one, where it has a best, or else its newest.

    bad: those that are not meant, and why. Says on stderr which one of several it is, and what was passed over.
    """
    best = best_of(place(path))
    if best is not None and best not in (bad or {}) and (best / MANIFEST).exists():
        print(f"the best checkpoint of {path} is {best.name}", file=sys.stderr, flush=True)
        return open_checkpoint(best)
    found = open_checkpoint(path, bad)
    for reason in found.skipped:
        print(f"passed over {reason}", file=sys.stderr, flush=True)
    return found


def tokenizer_of(found: Found) -> Tokenizer:
    """The tokenizer in the checkpoint's own folder (an export), or else in its run folder.

    Raises UserError if there is none, or if the model was trained with another.
    """
    folder = found.folder.absolute() if isinstance(found.folder, Path) else found.folder
    if isinstance(folder, Path) and not (_in_run(folder) and (folder.parent.parent / "tokenizer").exists()):
        folder = folder.resolve()  # a link to a checkpoint; but `checkpoints` itself may be a link out of the run
    in_run = _in_run(folder)
    chosen = folder.parent.parent / "tokenizer" if in_run and not own_tokenizer(folder) else folder / "tokenizer"
    if not in_run and not own_tokenizer(folder):
        raise UserError(f"'{chosen}' is missing", rule="an export holds its tokenizer, as a run folder does",
                        fix=f"restore it, or export again; or put the folder back into RUN/{FOLDER}")  # fmt: skip
    tokenizer, expected = load_tokenizer(chosen), found.manifest.meta.tokenizer_hash
    if tokenizer.hash != expected:
        raise UserError(f"'{chosen}' is tokenizer {tokenizer.hash[:12]}, but {found.folder} was trained with "
                        f"{expected[:12]}", rule="a model reads and writes the ids of its own tokenizer",
                        fix="restore the tokenizer folder that belongs to this model")  # fmt: skip
    return tokenizer


def _in_run(folder: Place) -> bool:
    return folder.parent.name == FOLDER and step_of(folder) is not None


def own_tokenizer(folder: Place) -> Place | None:
    """The tokenizer folder in a checkpoint's own folder, if it has one."""
    inside = folder / "tokenizer"
    sign = inside if isinstance(inside, Path) else inside / SETTINGS_FILE  # some stores know files alone
    return inside if sign.exists() else None
