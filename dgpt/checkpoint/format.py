"""What a checkpoint's bytes mean: manifest.json as strict models, and the header of a rank's safetensors file."""

import json
import math
import struct
from datetime import datetime
from functools import cached_property, partial
from typing import Annotated, Final, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from dgpt.checkpoint.index import FragmentIndex
from dgpt.errors import UserError

FORMAT: Final = 1
MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,500}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class CheckpointError(UserError):
    """A checkpoint that cannot be used: names the file, the reason and the fix. `summary` is one line."""

    def __init__(self, where: object, reason: str, *, fix: str) -> None:
        super().__init__(
            f"checkpoint {where}: {reason}",
            rule="a checkpoint is used only if it is exactly what its manifest says (docs/checkpoints.md)",
            fix=fix,
        )
        self.where, self.summary, self._arguments = where, f"{where}: {reason}", (where, reason)

    def __reduce__(self) -> tuple[partial["CheckpointError"], tuple[object, str]]:  # type: ignore[override]
        return partial(CheckpointError, fix=self.fix), self._arguments


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Meta(Strict):
    """Where the run stands, given by the training loop."""

    tokens: Count  # trained on so far
    samples: Count  # consumed so far: the data position (DESIGN: sample i is a pure function of data, seed and i)
    loss: float | None  # of the last step, None if unknown
    data_hash: str  # fingerprint of the prepared data
    tokenizer_hash: str
    config: dict[str, JsonValue]  # RunConfig.model_dump(mode="json")


class MeshEntry(Strict):
    """The topology that wrote the checkpoint: world_size = dp_size x tp."""

    world_size: Positive
    dp_size: Positive
    tp: Positive
    zero_stage: Annotated[int, Field(ge=0, le=3)]


class TensorEntry(Strict):
    """One parameter of the whole model, cut along tp_axis into tp_size equal parts (tp_axis null: one part)."""

    name: Name
    shape: tuple[Positive, ...]
    tp_axis: Literal[0, 1] | None
    tp_size: Positive
    states: dict[Name, Literal["F64", "F32", "BF16", "F16"]]  # state name -> dtype, as safetensors spells it

    @model_validator(mode="after")
    def check_cut(self) -> Self:
        if math.prod(self.shape) > 2**53:
            raise ValueError(f"tensor '{self.name}' of shape {self.shape} has more than 2^53 elements")
        if self.tp_axis is None:
            if self.tp_size != 1:
                raise ValueError(f"tensor '{self.name}' has tp_size {self.tp_size} but no tp_axis")
        elif self.tp_axis >= len(self.shape) or self.shape[self.tp_axis] % self.tp_size:
            raise ValueError(f"tensor '{self.name}' of shape {self.shape} cannot be cut into {self.tp_size} parts "
                             f"along axis {self.tp_axis}")  # fmt: skip
        return self

    def itemsize(self, state: str) -> int:
        """Bytes of one element of `state`."""
        return DTYPES[self.states[state]].itemsize

    @property
    def part_numel(self) -> int:
        """Elements of one tensor parallel part."""
        return math.prod(self.shape) // self.tp_size


class FragmentTable(Strict):
    """The fragments of one file in the order of their bytes; row i is the i-th entry of each column."""

    tensor: tuple[Count, ...]  # index into Manifest.tensors
    state: tuple[Count, ...]  # index into Manifest.states
    tp_rank: tuple[Count, ...]  # which of the tensor's tp_size parts
    start: tuple[Count, ...]  # first element, in the row-major flattening of that part
    numel: tuple[Positive, ...]


class FileEntry(Strict):
    name: Annotated[str, Field(pattern=r"^rank_[0-9]{5,9}\.safetensors$")]  # no separator: cannot leave the folder
    size: Positive  # bytes
    sha256: Sha256
    fragments: FragmentTable


class Manifest(Strict):
    """manifest.json. `attempt` stands among the first fields: it is searched in the first bytes (commit.py)."""

    format: Literal[1]
    attempt: str
    epoch: Count = 0  # of the lease under which it was committed: a later start of the run has a higher one
    created: datetime  # UTC
    seconds: Annotated[float, Field(ge=0)] | None = None  # that the save had taken: `dgpt submit` plans with it
    dgpt: str  # versions of the writer
    torch: str
    step: Count
    mesh: MeshEntry
    meta: Meta
    states: Annotated[tuple[Name, ...], Field(max_length=64)]
    tensors: tuple[TensorEntry, ...]
    files: tuple[FileEntry, ...]

    @model_validator(mode="after")
    def check_whole(self) -> Self:
        m = self.mesh
        if m.world_size != m.dp_size * m.tp:
            raise ValueError(f"mesh: world_size {m.world_size} is not dp_size {m.dp_size} x tp {m.tp}")
        for what, names in (("tensors", [t.name for t in self.tensors]), ("states", list(self.states)),
                            ("files", [f.name for f in self.files])):  # fmt: skip
            if len(set(names)) != len(names):
                raise ValueError(f"{what}: a name appears twice")
        self.index.check_tiling(self)
        return self

    @cached_property
    def index(self) -> FragmentIndex:
        """Where each range of each tensor lies. Raises ValueError if a row is outside its tensor list or file."""
        return FragmentIndex.of(self)

    @cached_property
    def tensor_ids(self) -> dict[str, int]:
        return {tensor.name: i for i, tensor in enumerate(self.tensors)}

    @property
    def bytes(self) -> int:
        """Size of all files but the manifest."""
        return sum(file.size for file in self.files)


def safetensors_header(
    step: int, attempt: str, tensors: tuple[TensorEntry, ...], states: tuple[str, ...], table: FragmentTable
) -> bytes:
    """The exact bytes before the payload of a rank's file: length (8 bytes, little endian), JSON, spaces to 8 bytes.

    Source: https://github.com/huggingface/safetensors#format
    """
    entries: dict[str, object] = {"__metadata__": {"format": f"dgpt/{FORMAT}", "step": str(step), "attempt": attempt}}
    offset = 0
    for t, s, tp_rank, start, numel in zip(
        table.tensor, table.state, table.tp_rank, table.start, table.numel, strict=True
    ):
        tensor, state = tensors[t], states[s]
        end = offset + numel * tensor.itemsize(state)
        key = f"{state}/{tensor.name}/tp{tp_rank}of{tensor.tp_size}/{start}"
        entries[key] = {"dtype": tensor.states[state], "shape": [numel], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
