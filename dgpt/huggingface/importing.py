"""A folder of `transformers` becomes a model of dgpt: a folder as `dgpt export --format dgpt` writes it."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dgpt.checkpoint.format import DTYPES, Manifest, Meta, TensorEntry
from dgpt.checkpoint.progress import byte_bar
from dgpt.checkpoint.weights import new_checkpoint, weight_bytes, whole_entry
from dgpt.config import FinetuneConfig, ModelConfig, RunConfig, TaskConfig, to_toml
from dgpt.data.huggingface_backend import lossless_settings
from dgpt.data.tokenizer import Tokenizer, build, load_tokenizer
from dgpt.errors import UserError
from dgpt.huggingface.folder import Weights, read_json, refuse
from dgpt.huggingface.names import LANGUAGE_MODEL, Family
from dgpt.huggingface.settings import Task, from_json
from dgpt.huggingface.tensors import Pair, Shape, pairs, shapes
from dgpt.huggingface.tokenizer import CONFIG, JSON, tokenizer_json
from dgpt.storage import Place

SPECIALS = "special_tokens_map.json"


class Source(NamedTuple):
    """Where a parameter of ours comes from."""

    name: str  # of the tensor in its file
    pair: Pair
    part: int
    shape: Shape  # of the part


def import_folder(folder: Path, output: Place, *, progress: bool = False) -> Manifest:
    """Write the model of `folder` to the new folder or URL `output`, each weight in the data type that it has there.

    Raises UserError, and leaves nothing behind, for whatever dgpt cannot express, for a pickle, and for a file that is
    damaged or does not fit the others.
    """
    if not folder.is_dir():
        raise UserError(f"'{folder}' is not a folder", rule="a model of transformers is a folder with config.json",
                        fix="give the folder that was downloaded, or that save_pretrained wrote")  # fmt: skip
    theirs, family, task = from_json(read_json(folder / "config.json"), folder / "config.json")
    weights = Weights.of(folder)
    sources = _sources(theirs, family, task, weights)
    tokenizer = read_tokenizer(folder)
    config = _settings(_with_tokenizer(theirs, tokenizer, folder), task)
    entries = [whole_entry(name, source.shape, weights.tensors[source.name].dtype) for name, source in sources.items()]
    meta = Meta(tokens=0, samples=0, loss=None, data_hash="", tokenizer_hash=tokenizer.hash,
                config=config.model_dump(mode="json"))  # fmt: skip
    beside = {"config.toml": to_toml(config).encode(),
              **{f"tokenizer/{name}": content for name, content in tokenizer.files().items()}}  # fmt: skip
    with byte_bar(f"importing {folder.name}", sum(map(weight_bytes, entries)), enabled=progress) as advance:

        def read(entry: TensorEntry) -> Tensor:
            source = sources[entry.name]
            advance(weight_bytes(entry))
            return source.pair.to_ours(weights.read(source.name))[source.part]

        return new_checkpoint(output, 0, meta, entries, read, beside)


def _settings(model: ModelConfig, task: Task) -> RunConfig | FinetuneConfig:
    """As of a run that made this model."""
    if task.kind == "language_model":
        return RunConfig(model=model)
    return FinetuneConfig(
        model=model, task=TaskConfig(kind=task.kind, labels=task.labels, multi_label=task.multi_label)
    )


def _sources(config: ModelConfig, family: Family, task: Task, weights: Weights) -> dict[str, Source]:
    """Where each parameter comes from. Raises UserError for a tensor that is missing, of another kind, or left over."""
    ours, names = shapes(config, task.kind, task.outputs), _their_names(family, task, weights)
    sources: dict[str, Source] = {}
    for pair in pairs(config, family, task.kind, task.outputs):
        name = names.pop(pair.theirs, None)
        if name is None:
            raise refuse(weights.folder, f"has no tensor '{pair.theirs}', which config.json asks for")
        stored = weights.tensors[name]
        if stored.dtype not in DTYPES:
            raise refuse(stored.path, f"holds '{name}' as {stored.dtype}; weights are {', '.join(DTYPES)}")
        if stored.shape != pair.shape:
            raise refuse(stored.path, f"holds '{name}' of shape {list(stored.shape)}, and config.json asks for "
                                      f"{list(pair.shape)}")  # fmt: skip
        sources |= {mine: Source(name, pair, i, ours[mine]) for i, mine in enumerate(pair.ours)}
    if config.tie_embeddings or task.kind != "language_model":
        names.pop(f"{LANGUAGE_MODEL.theirs}.weight", None)  # a second copy of the embedding, or of no use
    if names:
        left = min(names.values())
        raise refuse(weights.tensors[left].path, f"holds '{left}', which is no part of the model in config.json")
    return sources


def _their_names(family: Family, task: Task, weights: Weights) -> dict[str, str]:
    """Full name -> name in the files: older ones leave out the model's own, and hold buffers beside the parameters."""
    base = family.heads[task.kind].base or family.base
    full = (f"{base}.", *(head.layer.theirs for head in family.heads.values()))
    kept = [name for name in weights.tensors if not name.endswith(family.buffers)]
    return {name if name.startswith(full) else f"{base}.{name}": name for name in kept}


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that tokenizer.json was exported from, if that is there too; else tokenizer.json.

    Raises UserError if there is none that dgpt can use.
    """
    if not (folder / JSON).is_file():
        raise UserError(f"'{folder / JSON}' is missing", rule=f"the tokenizer of a model is its {JSON}",
                        fix="load the tokenizer with transformers and save it with save_pretrained, which writes the "
                            "file")  # fmt: skip
    content = (folder / JSON).read_bytes()
    with suppress(UserError, TypeError, ValueError, OSError):
        own = load_tokenizer(folder)
        if _unjoined(tokenizer_json(own)) == _unjoined(content):
            return own
    return build(JSON, content, _end_token(folder, content), ())


def _unjoined(tokenizer: bytes) -> dict[str, Any]:
    """Without its rule for pairs of texts, which dgpt's tasks bring themselves."""
    return dict(json.loads(tokenizer)) | {"post_processor": None}


def _end_token(folder: Path, tokenizer: bytes) -> str:
    """The name of the token that ends a text; older folders name it in files beside the tokenizer's settings."""
    named = [_settings_of(folder / name).get("eos_token") for name in (CONFIG, SPECIALS)]
    for token in named:
        name = token.get("content") if isinstance(token, dict) else token
        if name and isinstance(name, str):
            return name
    end = _settings_of(folder / "config.json").get("eos_token_id")
    settings, specials, *_ = lossless_settings(tokenizer, ())
    names = {i: name for name, i in (settings["model"]["vocab"] | specials).items()}
    for i in end if isinstance(end, list) else [end]:
        if isinstance(i, int) and i in names:
            return str(names[i])
    raise UserError(f"'{folder / CONFIG}': eos_token = {named[0]!r}, and config.json has eos_token_id = {end!r}",
                    rule="a text ends with a token of its own",
                    fix=f"set eos_token in {CONFIG} to the name of the model's end token")  # fmt: skip


def _settings_of(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _with_tokenizer(config: ModelConfig, tokenizer: Tokenizer, folder: Path) -> ModelConfig:
    """vocab_size is that of the tokenizer; further rows of the embedding are padding, as they are in dgpt."""
    rows = config.vocab_size
    if tokenizer.vocab_size > rows:
        raise UserError(f"'{folder}': vocab_size = {rows}, and the tokenizer has {tokenizer.vocab_size} ids",
                        rule="the embedding has a row for each id",
                        fix="restore the tokenizer that belongs to this model")  # fmt: skip
    multiple = 1 if tokenizer.vocab_size == rows else rows
    return config.model_copy(update={"vocab_size": tokenizer.vocab_size, "vocab_multiple": multiple})
