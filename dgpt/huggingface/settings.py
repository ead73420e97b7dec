"""config.json: dgpt's model settings as those of `transformers`, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dgpt.config import ModelConfig
from dgpt.errors import UserError
from dgpt.huggingface.names import FAMILIES, Family, HeadKind

SUPPORTED = ", ".join(name for family in FAMILIES.values() for name in family.classes)
IGNORED = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range")  # of training alone: need not agree


@dataclass(frozen=True)
class Task:
    """What the head of a model is for."""

    kind: HeadKind = "language_model"
    labels: tuple[str, ...] = ()
    multi_label: bool = False

    @property
    def outputs(self) -> int:
        return 2 if self.kind == "extractive_qa" else len(self.labels)


def family_of(config: ModelConfig) -> Family:
    """The family that computes what this model does. Raises UserError, with the settings in the way, if none does."""
    differences = {family: _differences(config, family) for family in FAMILIES.values()}
    for family, different in differences.items():
        if not different:
            return family
    family, different = min(differences.items(), key=lambda item: len(item[1]))
    name, wanted = next(iter(different.items()))
    rules = (f"{each.title} has " + ", ".join(f"{key} = {value!r}" for key, value in _required(config, each).items())
             for each in FAMILIES.values())  # fmt: skip
    raise UserError(f"model.{name} = {getattr(config, name)!r}: no class of transformers has this with the other "
                    f"settings of the model; {family.title} would have {wanted!r}",
                    rule="; ".join(rules), fix="export with --format dgpt")  # fmt: skip


def _required(config: ModelConfig, family: Family) -> dict[str, Any]:
    groups = {"n_kv_head": config.n_head} if not any(s.ours == "n_kv_head" for s in family.settings) else {}
    return dict(family.requires) | groups


def _differences(config: ModelConfig, family: Family) -> dict[str, Any]:
    """What the family has otherwise: setting -> its value there."""
    ours = config.model_dump() | {"n_kv_head": config.kv_heads}
    return {name: value for name, value in _required(config, family).items() if ours[name] != value}


def to_json(config: ModelConfig, family: Family, task: Task, special: dict[str, int], dtype: str) -> dict[str, Any]:
    """The content of config.json. special: ids of special tokens by their key; dtype: as torch names it."""
    ours = config.model_dump() | {"n_ff": config.ff_width, "n_kv_head": config.kv_heads}
    values = {setting.theirs: ours[setting.ours] for setting in family.settings}
    values |= {fixed.theirs: fixed.values[0] for fixed in family.fixed}
    if config.position == "rope":  # transformers 5 reads this table, older ones and other readers the key beside it
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    return {
        "architectures": [family.class_of(task.kind)],
        "model_type": family.model_type,
        **values,
        **special,
        "dtype": dtype,
        "torch_dtype": dtype,
        **_labels(task),
    }


def _labels(task: Task) -> dict[str, Any]:
    if task.kind != "classification":
        return {}
    kind = "multi_label_classification" if task.multi_label else "single_label_classification"
    return {"id2label": {str(i): label for i, label in enumerate(task.labels)},
            "label2id": {label: i for i, label in enumerate(task.labels)}, "problem_type": kind}  # fmt: skip


def from_json(values: Mapping[str, Any], path: Path) -> tuple[ModelConfig, Family, Task]:
    """Model settings and task of a config.json at `path`; vocab_size is the number of rows that its tensors have.

    Raises UserError that names the first key which dgpt has no equal for.
    """
    family = _family(values, path)
    task = _task(values, family, path)
    _check_fixed(values, family, path)
    found: dict[str, Any] = {}
    for setting in family.settings:
        value = _value(values, setting.theirs, setting.default, path)
        if found.setdefault(setting.ours, value) != value and setting.theirs not in IGNORED:
            raise _refuse(path, setting.theirs, value, f"dgpt has one setting for this and others: {found}")
    found |= {"shape": family.shape, **family.requires, "vocab_multiple": 1}
    try:
        return ModelConfig.model_validate(found), family, task
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"'{path}': {'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}",
                        rule="the sizes of the model must fit one another",
                        fix="restore the file from where it came") from None  # fmt: skip


def _family(values: Mapping[str, Any], path: Path) -> Family:
    names, model_type = values.get("architectures"), values.get("model_type")
    supported = f"supported are {SUPPORTED}"
    if "auto_map" in values:
        raise UserError(f"'{path}': auto_map = {values['auto_map']!r} asks for code that came with the model",
                        rule=f"dgpt runs no code of a model; {supported}",
                        fix="take a model of one of these classes")  # fmt: skip
    family = FAMILIES.get(str(model_type))
    if family is None or not isinstance(names, list) or len(names) != 1 or str(names[0]) not in family.classes:
        raise UserError(f"'{path}': architectures = {names!r} of model_type = {model_type!r} is not known here",
                        rule=supported, fix="take a model of one of these classes")  # fmt: skip
    return family


def _task(values: Mapping[str, Any], family: Family, path: Path) -> Task:
    kind = family.classes[values["architectures"][0]]
    if kind != "classification":
        return Task(kind)
    problem = values.get("problem_type") or "single_label_classification"
    if problem not in ("single_label_classification", "multi_label_classification"):
        raise _refuse(path, "problem_type", problem, "a classifier here has one label or several labels for each text")
    labels = values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # two, as transformers takes it
    if not isinstance(labels, dict) or set(labels) != set(map(str, range(len(labels)))):
        raise _refuse(path, "id2label", labels, "a table from each number, 0 and up, to its label")
    names = tuple(str(labels[str(i)]) for i in range(len(labels)))
    if not all(names) or len(set(names)) < len(names):
        raise _refuse(path, "id2label", labels, "labels differ and are not empty")
    return Task(kind, names, problem.startswith("multi"))


def _check_fixed(values: Mapping[str, Any], family: Family, path: Path) -> None:
    for fixed in family.fixed:
        value = values.get(fixed.theirs, fixed.values[0])
        if value not in fixed.values:
            raise _refuse(path, fixed.theirs, value, f"dgpt computes {' or '.join(map(repr, fixed.values))} alone")
    rope = _rope(values)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.keys() - {"rope_type", "type", "rope_theta"}:
        key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
        raise _refuse(path, key, rope, "dgpt's rotary positions are not scaled (rope_type 'default')")
    width, heads, whole = (values.get(name) for name in ("head_dim", "num_attention_heads", "hidden_size"))
    if width is not None and not (isinstance(width, int) and isinstance(heads, int) and width * heads == whole):
        raise _refuse(path, "head_dim", width, "hidden_size / num_attention_heads is the width of a head here")


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers 5 writes rope_parameters; before, rope_scaling held what differs from the default."""
    table = values.get("rope_parameters") or values.get("rope_scaling") or {}
    return table if isinstance(table, dict) else {"rope_type": table}


def _value(values: Mapping[str, Any], name: str, default: Any, path: Path) -> Any:
    value = values.get(name)
    if name == "rope_theta":
        value = _rope(values).get(name, value)
    if isinstance(value, int) and isinstance(default, float):
        value = float(value)
    if value is None and default is None:
        raise _refuse(path, name, None, "this size must be given")
    return default if value is None else value


def _refuse(path: Path, name: str, value: object, rule: str) -> UserError:
    return UserError(f"'{path}': {name} = {value!r} cannot be expressed in dgpt", rule=rule,
                     fix=f"take a model without it; supported are {SUPPORTED}")  # fmt: skip
