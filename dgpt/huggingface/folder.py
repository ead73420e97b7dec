"""Weights in a folder of `transformers`: one safetensors file, or shards with an index. Pickles are not read.

Format: https://github.com/huggingface/safetensors#format
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dgpt.checkpoint.format import DTYPE_NAMES
from dgpt.checkpoint.output import Write
from dgpt.checkpoint.weights import chunks
from dgpt.errors import UserError
from dgpt.huggingface.tensors import Pair

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
RULE = f"weights are {SINGLE}, or the files that {INDEX} names, whole and unchanged"
RESTORE = "copy the folder anew from where it came"


def plan_shards(pairs: Sequence[Pair], itemsize: int, max_bytes: int) -> dict[str, list[Pair]]:
    """Which tensors go into which file, by its name; a tensor larger than `max_bytes` has one of its own."""
    groups: list[list[Pair]] = [[]]
    room = max_bytes
    for pair in pairs:
        size = pair.numel * itemsize
        if size > room and groups[-1]:
            groups.append([])
            room = max_bytes
        groups[-1].append(pair)
        room -= size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def write_shards(
    write: Write, shards: Mapping[str, Sequence[Pair]], dtype: torch.dtype, read: Callable[[Pair], Tensor]
) -> int:
    """Write the files, and the index if there are several; gives the bytes of all tensors.

    read: gives one tensor in its shape and in `dtype`; called in the order of `shards`.
    """
    total = sum(pair.numel for group in shards.values() for pair in group) * dtype.itemsize
    for name, group in shards.items():
        write(name, chunks(_header(group, dtype), map(read, group)))
    if len(shards) > 1:
        places = {pair.theirs: name for name, group in shards.items() for pair in group}
        write(INDEX, iter([_json({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})]))
    return total


def _header(group: Sequence[Pair], dtype: torch.dtype) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for pair in group:
        end = offset + pair.numel * dtype.itemsize
        entries[pair.theirs] = {"dtype": DTYPE_NAMES[dtype], "shape": pair.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _json(values: object) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; dtype as safetensors spells it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


class Weights:
    """The tensors of a folder."""

    def __init__(self, folder: Path, tensors: dict[str, Stored]) -> None:
        self.folder, self.tensors = folder, tensors

    @classmethod
    def of(cls, folder: Path) -> Self:
        """What is missing, damaged or not as the index says raises UserError with the name of the file."""
        places = _places(folder)
        weights = cls.of_files(folder, sorted(set(places.values())) or [folder / SINGLE])
        for name, path in places.items():
            if name not in weights.tensors or weights.tensors[name].path != path:
                raise refuse(path, f"does not hold '{name}', which {INDEX} places there")
        return weights

    @classmethod
    def of_files(cls, folder: Path, files: Iterable[Path]) -> Self:
        return cls(folder, {name: stored for path in files for name, stored in _entries(path)})

    def read(self, name: str) -> Tensor:
        path = self.tensors[name].path
        with _opened(path) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def _places(folder: Path) -> dict[str, Path]:
    """Tensor -> file, from the index; none without an index."""
    if (folder / SINGLE).is_file():
        return {}
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    index = read_json(folder / INDEX)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise refuse(folder / INDEX, "has no weight_map")
    for file in set(map(str, places.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise refuse(folder / INDEX, f"names {file!r}, which is no safetensors file of this folder")
        if not (folder / file).is_file():
            raise refuse(folder / file, f"is missing, and {INDEX} names it")
    return {name: folder / str(file) for name, file in places.items()}


def _no_weights(folder: Path) -> UserError:
    pickles = [path for ending in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in sorted(folder.glob(ending))]
    if pickles:
        return UserError(f"'{pickles[0]}' is a pickle, and '{folder}' has no {SINGLE}",
                         rule="a pickle can run any code when it is opened, so none is read here",
                         fix=f"if you trust where it came from: dgpt convert-pickle {folder} NEW_FOLDER")  # fmt: skip
    return UserError(f"'{folder}' has neither {SINGLE} nor {INDEX}", rule=RULE, fix=RESTORE)


def _entries(path: Path) -> Iterator[tuple[str, Stored]]:
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118  # not a dict
            part = file.get_slice(name)
            yield name, Stored(path, part.get_dtype(), tuple(part.get_shape()))


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise refuse(path, f"is damaged or no safetensors file: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"'{path}' cannot be read: {reason}",
                        rule="a folder of transformers holds config.json, tokenizer.json and safetensors files",
                        fix=RESTORE) from None  # fmt: skip
    return values


def refuse(path: Path, why: str) -> UserError:
    return UserError(f"'{path}' {why}", rule=RULE, fix=RESTORE)
