"""A folder of `transformers` becomes a model of dgpt: a folder as `dgpt export --format dgpt` writes it."""

from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from torch import Tensor

from dgpt.checkpoint.format import Manifest, Meta, TensorEntry
from dgpt.checkpoint.output import check_free, new_folder
from dgpt.checkpoint.progress import byte_bar
from dgpt.checkpoint.weights import in_order, weight_bytes, whole_entry, write_weights
from dgpt.config import ModelConfig, RunConfig, to_toml
from dgpt.data.tokenizer import SETTINGS_FILE, Tokenizer, build, load_tokenizer
from dgpt.errors import UserError
from dgpt.huggingface.folder import Weights, read_json, refuse
from dgpt.huggingface.names import Family
from dgpt.huggingface.settings import from_json
from dgpt.huggingface.tensors import Pair, Shape, pairs, shapes
from dgpt.huggingface.tokenizer import CONFIG, JSON, tokenizer_json
from dgpt.storage import Place


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
    if task.kind != "language_model":
        raise UserError(f"'{folder}' is a {family.class_of(task.kind)}", rule="a language model can be imported",
                        fix="import the model that it was made of, and fine-tune it")  # fmt: skip
    weights = Weights.of(folder)
    sources = _sources(theirs, family, weights)
    tokenizer = read_tokenizer(folder)
    config = RunConfig(model=_with_tokenizer(theirs, tokenizer, folder))
    check_free(output, 0)
    entries = in_order([whole_entry(name, source.shape, weights.tensors[source.name].dtype)
                        for name, source in sources.items()])  # fmt: skip
    meta = Meta(tokens=0, samples=0, loss=None, data_hash="", tokenizer_hash=tokenizer.hash,
                config=config.model_dump(mode="json"))  # fmt: skip
    beside = {"config.toml": to_toml(config).encode(),
              **{f"tokenizer/{name}": content for name, content in tokenizer.files().items()}}  # fmt: skip
    attempt, total = f"import-{uuid4().hex}", sum(map(weight_bytes, entries))
    with byte_bar(f"importing {folder.name}", total, enabled=progress) as advance:

        def read(entry: TensorEntry) -> Tensor:
            source = sources[entry.name]
            advance(weight_bytes(entry))
            return source.pair.to_ours(weights.read(source.name))[source.part]

        with new_folder(output, attempt, total) as write:
            for name, content in beside.items():
                write(name, iter([content]))
            return write_weights(write, attempt, 0, meta, entries, read)


def _sources(config: ModelConfig, family: Family, weights: Weights) -> dict[str, Source]:
    """Where each parameter comes from. Raises UserError if a tensor is missing, of another shape, or left over."""
    ours, names, sources = shapes(config), _their_names(family, weights), dict[str, Source]()
    for pair in pairs(config, family):
        name = names.pop(pair.theirs, None)
        if name is None:
            raise refuse(weights.folder, f"has no tensor '{pair.theirs}', which config.json asks for")
        stored = weights.tensors[name]
        if stored.shape != pair.shape:
            raise refuse(stored.path, f"holds '{name}' of shape {list(stored.shape)}, and config.json asks for "
                                      f"{list(pair.shape)}")  # fmt: skip
        sources |= {mine: Source(name, pair, i, ours[mine]) for i, mine in enumerate(pair.ours)}
    if config.tie_embeddings:
        names.pop(f"{family.heads['language_model'].layer.theirs}.weight", None)  # a second copy of the embedding
    if names:
        left = min(names.values())
        raise refuse(weights.tensors[left].path, f"holds '{left}', which is no part of the model in config.json")
    return sources


def _their_names(family: Family, weights: Weights) -> dict[str, str]:
    """Full name -> name in the files: older ones leave out the model's own, and hold buffers beside the parameters."""
    heads = tuple(head.layer.theirs for head in family.heads.values())
    kept = [name for name in weights.tensors if not name.endswith(family.buffers)]
    return {name if name.startswith((f"{family.base}.", *heads)) else f"{family.base}.{name}": name for name in kept}


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder: dgpt's own if it is there and fits tokenizer.json, else tokenizer.json.

    Raises UserError if there is none that dgpt can use.
    """
    if (folder / SETTINGS_FILE).is_file():
        own = load_tokenizer(folder)
        if (folder / JSON).is_file() and tokenizer_json(own) == (folder / JSON).read_bytes():
            return own
    if not (folder / JSON).is_file():
        raise UserError(f"'{folder / JSON}' is missing", rule=f"the tokenizer of a model is its {JSON}",
                        fix="load the tokenizer with transformers and save it with save_pretrained, which writes the "
                            "file")  # fmt: skip
    return build(JSON, (folder / JSON).read_bytes(), _end_token(folder), ())


def _end_token(folder: Path) -> str:
    """The name of the token that ends a text."""
    settings = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    token = settings.get("eos_token")
    name = token.get("content") if isinstance(token, dict) else token
    if not isinstance(name, str) or not name:
        raise UserError(f"'{folder / CONFIG}': eos_token = {token!r}", rule="a text ends with a token of its own",
                        fix=f"set eos_token in {CONFIG} to the name of the model's end token")  # fmt: skip
    return name


def _with_tokenizer(config: ModelConfig, tokenizer: Tokenizer, folder: Path) -> ModelConfig:
    """vocab_size is that of the tokenizer; further rows of the embedding are padding, as they are in dgpt."""
    rows = config.vocab_size
    if tokenizer.vocab_size > rows:
        raise UserError(f"'{folder}': vocab_size = {rows}, and the tokenizer has {tokenizer.vocab_size} ids",
                        rule="the embedding has a row for each id",
                        fix="restore the tokenizer that belongs to this model")  # fmt: skip
    multiple = 1 if tokenizer.vocab_size == rows else rows
    return config.model_copy(update={"vocab_size": tokenizer.vocab_size, "vocab_multiple": multiple})
