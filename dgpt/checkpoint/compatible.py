"""Whether a checkpoint is of the model that wants it."""

from pydantic import JsonValue

from dgpt.checkpoint.find import Found
from dgpt.checkpoint.format import MANIFEST, CheckpointError
from dgpt.config import FinetuneConfig, LoopConfig, ModelConfig, RunConfig, parse_config, parse_settings
from dgpt.errors import UserError
from dgpt.fragments import Fragment

_FREE = {"dropout", "init_std", "shape", "vocab_multiple", "n_kv_head", "n_ff"}  # n_kv_head, n_ff: by what they mean
_OTHER_MODEL = "set the model as in the checkpoint (`dgpt checkpoint show FOLDER`), or give this run another run_dir"


def read_config(found: Found) -> RunConfig | FinetuneConfig:
    """The settings that the checkpoint was trained with. Raises CheckpointError if this dgpt does not know them all."""
    return _config_of(found, dict(found.manifest.meta.config))


def is_finetuned(found: Found) -> bool:
    """Whether a fine-tuning wrote the checkpoint, and not a pretraining."""
    return "task" in found.manifest.meta.config


def _config_of(found: Found, values: dict[str, JsonValue]) -> RunConfig | FinetuneConfig:
    path = found.folder / MANIFEST
    try:
        return (
            parse_settings(FinetuneConfig, values, str(path)) if "task" in values else parse_config(values, str(path))
        )
    except UserError as error:
        fix = f"use dgpt {found.manifest.dgpt}, which wrote it"
        raise CheckpointError(path, f"its settings are not known here: {error.what}", fix=fix) from None


def check_model(found: Found, config: LoopConfig) -> None:
    """Raises CheckpointError that names the first setting in which the checkpoint's model differs from `config`'s."""
    theirs = _config_of(found, {"model": found.manifest.meta.config.get("model")}).model  # other sections may be older
    if difference := model_difference(theirs, config.model):
        name, written, wanted = difference
        reason = f"is of another model: model.{name} = {written!r} there, {wanted!r} in this run"
        raise CheckpointError(found.folder, reason, fix=_OTHER_MODEL)


def model_difference(a: ModelConfig, b: ModelConfig) -> tuple[str, object, object] | None:
    """The first setting by which a and b mean different models, and its two values; None if they mean the same."""
    first, second = _meaning(a), _meaning(b)
    return next(((name, first.get(name), second[name]) for name in second if first.get(name) != second[name]), None)


def check_tensor(found: Found, f: Fragment) -> tuple[int, int]:
    """Indices of the fragment's tensor and state. Raises CheckpointError if they are missing or of another shape."""
    tensor = found.manifest.tensor_ids.get(f.name)
    if tensor is None:
        raise CheckpointError(found.folder, f"has no tensor '{f.name}'", fix=_OTHER_MODEL)
    entry = found.manifest.tensors[tensor]
    if entry.shape != f.shape:
        difference = f"'{f.name}' has shape {entry.shape} there, {f.shape} in this run"
        raise CheckpointError(found.folder, difference, fix=_OTHER_MODEL)
    if f.state not in entry.states:
        fix = "load the states that are there, e.g. states={'weight'}: the rest starts anew"
        raise CheckpointError(found.folder, f"has only {', '.join(entry.states)} of '{f.name}', no {f.state}", fix=fix)
    return tensor, found.manifest.states.index(f.state)


def _meaning(model: ModelConfig) -> dict[str, object]:
    values = {name: value for name, value in model.model_dump().items() if name not in _FREE}
    if model.position == "rope":
        del values["seq_len"]  # no parameter depends on it
    else:
        del values["rope_theta"]
    return values | {"kv_heads": model.kv_heads, "ff_width": model.ff_width}
