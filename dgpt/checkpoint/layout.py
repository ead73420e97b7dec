"""What one rank stores, as plain data: its rows of the manifest, and the live tensors in the order of its file."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from pydantic import TypeAdapter
from torch import Tensor

from dgpt.checkpoint.format import DTYPE_NAMES, FileEntry, FragmentTable, Strict, TensorEntry
from dgpt.fragments import Fragment

_ENTRIES = TypeAdapter(tuple[TensorEntry, ...])


class Part(Strict):
    """A rank's report to rank 0. Indices in `file` count this rank's own tensors and states."""

    rank: int
    error: str | None = None
    states: tuple[str, ...] = ()
    tensors: str = "[]"  # its TensorEntry list as JSON: alike on many ranks, and then parsed once for all
    file: FileEntry | None = None

    @property
    def sha256(self) -> str:
        return self.file.sha256 if self.file else ""


@dataclass(frozen=True)
class Layout:
    """A rank's file before it is written."""

    states: tuple[str, ...]
    tensors: tuple[TensorEntry, ...]
    table: FragmentTable
    payload_bytes: int

    def part(self, rank: int, file: FileEntry) -> Part:
        """The report of a rank that has written its file."""
        return Part(rank=rank, states=self.states, tensors=_ENTRIES.dump_json(self.tensors).decode(), file=file)


@dataclass(frozen=True)
class _Share:
    """The share of a fragment that this rank stores for all its replicas."""

    fragment: Fragment
    tensor: Tensor
    start: int

    @classmethod
    def of(cls, f: Fragment) -> "_Share":
        numel = f.tensor.numel()
        low, high = (numel * replica // f.replicas for replica in (f.replica, f.replica + 1))
        return cls(f, f.tensor.detach()[low:high], f.start + low)


def plan(fragments: Iterable[Fragment]) -> tuple[Layout, list[Tensor]]:
    """Lay out a file. Wide elements come first, so that each tensor of the file is aligned to its element size."""
    shares = [share for share in map(_Share.of, fragments) if share.tensor.numel()]
    shares.sort(key=lambda share: -share.tensor.element_size())
    entries = _entries(shares)
    states = tuple(dict.fromkeys(share.fragment.state for share in shares))
    tensor_ids, state_ids = _number(entries), _number(states)
    table = FragmentTable(
        tensor=tuple(tensor_ids[share.fragment.name] for share in shares),
        state=tuple(state_ids[share.fragment.state] for share in shares),
        tp_rank=tuple(share.fragment.tp_rank if share.fragment.tp_axis is not None else 0 for share in shares),
        start=tuple(share.start for share in shares),
        numel=tuple(share.tensor.numel() for share in shares),
    )
    tensors = [share.tensor for share in shares]
    return Layout(states, tuple(entries.values()), table, sum(t.nbytes for t in tensors)), tensors


def merge(parts: list[Part]) -> tuple[tuple[str, ...], tuple[TensorEntry, ...], tuple[FileEntry, ...]]:
    """States, tensors and files of all ranks, with common indices. Raises ValueError if two ranks contradict."""
    entries: dict[str, TensorEntry] = {}
    for text in {part.tensors: None for part in parts}:
        for tensor in _parse(text):
            entries[tensor.name] = _merge_entries(entries.get(tensor.name, tensor), tensor)
    states = tuple(dict.fromkeys(state for part in parts for state in part.states))
    tensor_ids, state_ids = _number(entries), _number(states)
    files = tuple(_renumber(part, part.file, tensor_ids, state_ids) for part in parts if part.file)
    return states, tuple(entries.values()), files


def _entries(shares: list[_Share]) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for share in shares:
        f = share.fragment
        entry = TensorEntry(
            name=f.name,
            shape=f.shape,
            tp_axis=f.tp_axis,  # type: ignore[arg-type]  # checked by the model
            tp_size=f.tp_size if f.tp_axis is not None else 1,
            states={f.state: DTYPE_NAMES[f.tensor.dtype]},  # type: ignore[dict-item]
        )
        entries[f.name] = _merge_entries(entries.get(f.name, entry), entry)
    return entries


def _merge_entries(a: TensorEntry, b: TensorEntry) -> TensorEntry:
    same_cut = (a.shape, a.tp_axis, a.tp_size) == (b.shape, b.tp_axis, b.tp_size)
    if not same_cut or any(b.states.get(state, dtype) != dtype for state, dtype in a.states.items()):
        raise ValueError(f"two fragments of one tensor contradict each other: {a!r} and {b!r}")
    return a.model_copy(update={"states": {**a.states, **b.states}})


def _number(names: Iterable[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


@lru_cache(maxsize=2)
def _parse(text: str) -> tuple[TensorEntry, ...]:
    return _ENTRIES.validate_json(text)


def _renumber(part: Part, file: FileEntry, tensor_ids: dict[str, int], state_ids: dict[str, int]) -> FileEntry:
    tensors = [tensor_ids[tensor.name] for tensor in _parse(part.tensors)]
    states = [state_ids[state] for state in part.states]
    table = file.fragments.model_copy(
        update={
            "tensor": tuple(tensors[i] for i in file.fragments.tensor),
            "state": tuple(states[i] for i in file.fragments.state),
        }
    )
    return file.model_copy(update={"fragments": table})
