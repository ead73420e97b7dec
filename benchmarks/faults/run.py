"""A run of two ranks without a process group, whose state at each save is known bit for bit."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from zlib import crc32

import torch
from torch import Tensor

from dgpt.checkpoint import Checkpointer, MeshEntry, Meta, verify
from dgpt.checkpoint.read import read_manifest
from dgpt.config import RunConfig
from dgpt.errors import UserError
from dgpt.fragments import Fragment
from dgpt.resume import Resumed, resume
from dgpt.runtime import Runtime

RANKS = (0, 1)
MESH = MeshEntry(world_size=2, dp_size=2, tp=1, zero_stage=1)
STATES = ("weight", "exp_avg", "exp_avg_sq")
FINAL_STEP = 99
DATA, TOKENIZER = "d" * 64, "e" * 64  # hashes


@dataclass(frozen=True)
class Shapes:
    """Parameters of the run. Both ranks hold `norm.weight`; of the others each holds a half, in turns the first one.

    So the files of the two ranks have the same length.
    """

    rows: int

    def items(self) -> list[tuple[str, tuple[int, ...]]]:
        large, small = (self.rows, 10), (12, 10)
        return [("wte.weight", large), ("wpe.weight", large), ("q.weight", small), ("k.weight", small),
                ("norm.weight", (14,))]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a start of the run ended."""

    how: str  # "continues", "refuses"
    step: int | None = None
    attempt: str = ""
    text: str = ""  # the refusal, or why newer checkpoints were skipped


def meta(step: int) -> Meta:
    return Meta(tokens=1000 * step, samples=10 * step, loss=2.5, data_hash=DATA, tokenizer_hash=TOKENIZER,
                config=RunConfig().model_dump(mode="json"))  # fmt: skip


def state(shapes: Shapes, rank: int, step: int, attempt: str) -> list[Fragment]:
    """What `rank` holds at `step`: any bits, NaN and denormal numbers among them."""
    fragments = []
    for number, (name, shape) in enumerate(shapes.items()):
        for kind in STATES:
            whole = _bits(f"{name} {kind} {step} {attempt}", math.prod(shape))
            if name == "norm.weight":
                fragments.append(Fragment(name, kind, shape, None, 0, 1, 0, whole, rank, replicas=2))
            else:
                half = (rank + number) % 2
                start = half * len(whole) // 2
                fragments.append(Fragment(name, kind, shape, None, 0, 1, start, whole.chunk(2)[half].clone()))
    return fragments


def checkpointer(run_dir: Path, rank: int, attempt: str, said: Callable[[str], None] = print, *, keep_last: int = 3,
                 stall_seconds: float = 30) -> Checkpointer:  # fmt: skip
    return Checkpointer(run_dir, rank, MESH, attempt, keep_last=keep_last, report=said, stall_seconds=stall_seconds)


def save(run_dir: Path, shapes: Shapes, steps: list[int], attempt: str) -> None:
    """Both ranks of one start save at each of `steps`. Raises AssertionError if one does not get whole to the disk."""
    said: list[str] = []
    ranks = [checkpointer(run_dir, rank, attempt, said.append) for rank in RANKS]
    for step in steps:
        for rank in RANKS:
            ranks[rank].save(step, state(shapes, rank, step, attempt), meta(step))
        for rank in RANKS:
            ranks[rank].wait()
        problems = said + verify(run_dir / "checkpoints" / f"step_{step:08d}")
        if problems or {c.saved_step for c in ranks} != {step}:
            raise AssertionError(f"step {step} was not saved: {problems}")


def start(run_dir: Path, shapes: Shapes) -> Ended:
    """A start of the run up to its first step, by dgpt.resume. Raises AssertionError if it got other data."""
    config, engine = RunConfig(run_dir=str(run_dir)), _Engine(shapes)
    setup = SimpleNamespace(config=config, data_hash=DATA, tokenizer=SimpleNamespace(hash=TOKENIZER))
    alone = Runtime(0, 0, 1, torch.device("cpu"))
    try:
        checkpointer(run_dir, 0, "next")  # cleans
        resumed = resume(cast(Any, setup), cast(Any, engine), alone)
    except UserError as error:
        return Ended("refuses", text=str(error))
    if resumed is None:
        return Ended("starts anew at step 0")
    engine.compare(resumed)
    passed_over = (line for line in resumed.report if line.startswith("passed over "))
    return Ended("continues", resumed.step, read_manifest(resumed.folder).attempt, "\n".join(passed_over))


def start_and_save(run_dir: Path, shapes: Shapes) -> Ended:
    """As `start`; then nothing but whole checkpoints may be there, and the next save must succeed."""
    ended = start(run_dir, shapes)
    check_whole(run_dir)
    save(run_dir, shapes, [FINAL_STEP], "next")
    return ended


def check_whole(run_dir: Path) -> None:
    """Raises AssertionError unless all that is there are checkpoints that are whole to the last bit."""
    for folder in sorted((run_dir / "checkpoints").iterdir()):
        problems = [f"{folder.name} is left over"] if "." in folder.name else verify(folder)
        if problems:
            raise AssertionError("; ".join(problems))


class _Engine:
    """What dgpt.resume wants of one, on a single rank that takes the state of both."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes, self._steps = shapes, 0
        self._fragments = self._state(0, "none")

    def fragments(self) -> list[Fragment]:
        return self._fragments

    def loaded(self, steps: int) -> None:
        self._steps = steps

    def compare(self, resumed: Resumed) -> None:
        """Raises AssertionError unless all was loaded, bit for bit as it was saved."""
        found = read_manifest(resumed.folder)
        if self._steps != found.step or found.meta != meta(found.step):
            raise AssertionError(f"WRONG DATA IN SILENCE: {self._steps} steps, {found.meta} of {resumed.folder}")
        for f, saved in zip(self._fragments, self._state(found.step, found.attempt), strict=True):
            if not torch.equal(f.tensor.view(torch.int32), saved.tensor.view(torch.int32)):
                raise AssertionError(f"WRONG DATA IN SILENCE: {f.state} of {f.name}, {resumed.folder}")

    def _state(self, step: int, attempt: str) -> list[Fragment]:
        return [fragment for rank in RANKS for fragment in state(self._shapes, rank, step, attempt)]


def _bits(name: str, numel: int) -> Tensor:
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    return torch.randint(-(2**31), 2**31, (numel,), generator=generator, dtype=torch.int32).view(torch.float32)
