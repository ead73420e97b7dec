"""Everything that can be wrong with a run, found before the first collective and alike on every rank."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from dgpt.checkpoint.files import FOLDER as CHECKPOINTS
from dgpt.config import BatchPlan, LoopConfig, RunConfig, batch_plan, parse_config
from dgpt.data.loader import Loader, Position
from dgpt.data.shards import TokenData, open_split, read_index
from dgpt.data.tokenizer import Tokenizer, load_tokenizer
from dgpt.errors import UserError
from dgpt.parallel.engine import check_engine
from dgpt.parallel.mesh import ParallelDims
from dgpt.runtime import Runtime, has_fast_bf16

FOLDERS = (CHECKPOINTS, "lock", "tokenizer", "tensorboard", "profile")  # in the run folder
FILES = ("config.toml", "metrics.jsonl")
CHECKPOINT_BYTES = 12  # of each parameter: weight and two moments in fp32


class Batches(Protocol):
    """The training data of a rank, by the number of the global step."""

    def step(self, step: int) -> Iterator[Any]: ...
    def position(self, step: int) -> Position: ...
    def fingerprint(self, step: int) -> str: ...


@dataclass(frozen=True)
class Setup:
    """A run that can start: the resolved config and what was opened to check it."""

    config: LoopConfig  # with model.vocab_size filled in
    dims: ParallelDims
    plan: BatchPlan
    dtype: torch.dtype
    loader: Batches
    tokenizer: Tokenizer
    data_hash: str


@dataclass(frozen=True)
class PretrainSetup(Setup):
    config: RunConfig
    loader: Loader
    train_data: TokenData
    val_data: TokenData


def check(config: RunConfig, runtime: Runtime) -> PretrainSetup:
    """Open data and tokenizer, make the run folder. Raises UserError for what cannot work."""
    dims = ParallelDims(runtime.world_size, config.parallel.tp)
    plan = batch_plan(config, dims.dp)
    dtype = compute_dtype(config, runtime.device)
    check_engine(config, dims, dtype)
    folder = Path(config.data.path)
    weights = [source.weight for source in config.data.sources]
    # Sizes are checked on every rank; to hash what changed since the last check (normally nothing) is for one.
    opened = (open_split(folder, split, weights=weights, verify=runtime.is_main) for split in ("train", "val"))
    train_data, val_data = opened
    tokenizer = load_tokenizer(folder)
    train_data.check_tokenizer(tokenizer)
    config = with_vocab(config, train_data)
    loader = Loader(train_data, seq_len=config.model.seq_len, seed=config.seed, plan=plan,
                    dp_rank=dims.dp_rank(runtime.rank), reset_at_document=config.data.reset_at_document)  # fmt: skip
    check_local(config.run_dir)
    check_writable(Path(config.run_dir))
    data_hash = hash_of_data(folder)
    return PretrainSetup(config, dims, plan, dtype, loader, tokenizer, data_hash, train_data, val_data)


def check_alike(setup: Setup, runtime: Runtime) -> None:
    """The first word between ranks. Raises UserError on all of them if their devices would compute in other types."""
    found = runtime.gather(str(setup.dtype))
    if len(set(found)) > 1:
        raise UserError(
            f"precision.dtype = 'auto' is {' and '.join(sorted(set(found)))} on the ranks' devices",
            rule="all ranks compute in one data type",
            fix='set precision.dtype="fp32", or ask for devices of one kind',
        )


def compute_dtype(config: LoopConfig, device: torch.device) -> torch.dtype:
    """bf16 or fp32; precision.dtype = 'auto' asks the device."""
    name = config.precision.dtype
    if name == "auto":
        name = "bf16" if has_fast_bf16(device) else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


def with_vocab(config: RunConfig, data: TokenData) -> RunConfig:
    """The config with the vocabulary of the data. Raises UserError if it names another, or if tp does not divide it."""
    if config.model.vocab_size not in (0, data.vocab_size):
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size}, but the tokenizer of '{data.path}' has {data.vocab_size}",
            rule="the model has one row for each token of the data",
            fix=f"set model.vocab_size={data.vocab_size}, or 0 to take it from the data",
        )
    values = config.model_dump(mode="json")
    values["model"]["vocab_size"] = data.vocab_size
    return parse_config(values, f"with the vocabulary of {data.path}")


def hash_of_data(folder: Path) -> str:
    """Identity of prepared data: of all its files by name and content."""
    files = {name: record["sha256"] for name, record in read_index(folder)["files"].items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def check_space(config: LoopConfig, parameters: int) -> None:
    """Raises UserError if the disk has no room for one checkpoint of so many parameters."""
    needed, free = CHECKPOINT_BYTES * parameters, shutil.disk_usage(config.run_dir).free
    if needed > free:
        raise UserError(
            f"run_dir = '{config.run_dir}' has {free:,} bytes free, a checkpoint takes {needed:,}",
            rule="a run ends with a checkpoint",
            fix="free space (`dgpt checkpoint prune` deletes old checkpoints), or move the run folder to a larger disk",
        )


def check_local(run_dir: str) -> None:
    """Raises UserError if it is a URL."""
    if "://" in run_dir:
        raise UserError(
            f"run_dir = '{run_dir}' is a URL",
            rule="a run writes into a folder of a POSIX file system, which all its nodes share",
            fix="set run_dir to such a folder; `dgpt export` copies a trained model to an object store",
        )


def _obstacle(path: Path) -> str:
    if not path.is_dir():
        return "there is a file at"
    return "a read-only file system holds" if os.statvfs(path).f_flag & os.ST_RDONLY else "no permission at"


def check_writable(run_dir: Path) -> None:
    """Make the run folder. Raises UserError if it cannot be made or written to."""
    for folder in (run_dir.absolute(), *(run_dir.absolute() / name for name in FOLDERS)):
        existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
            continue
        raise UserError(
            f"run_dir = '{run_dir}' cannot be written: {_obstacle(existing)} '{existing}'",
            rule="a run writes its config, metrics and checkpoints there",
            fix="set run_dir to a folder of yours, or make that one writable",
        )
    for file in (run_dir / name for name in FILES if (run_dir / name).exists()):
        if not file.is_file() or not os.access(file, os.W_OK):
            raise UserError(f"run_dir = '{run_dir}' cannot be written: '{file}' is no file that this user may write",
                            rule="a run writes its settings and its metrics there",
                            fix="move it away, or set run_dir to another folder")  # fmt: skip
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir = '{run_dir}' cannot be made: {error.strerror}", rule="a run writes into its folder",
                        fix="set run_dir to a folder of yours") from None  # fmt: skip
