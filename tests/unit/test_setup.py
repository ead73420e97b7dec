"""What `check` finds before the ranks have said a word to each other: the same on every one of them."""

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dgpt.config import RunConfig, load_config
from dgpt.errors import UserError
from dgpt.runtime import Runtime
from dgpt.setup import PretrainSetup, check, check_space, compute_dtype, hash_of_data

CPU = torch.device("cpu")


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def config_of(data: Path, *overrides: str) -> RunConfig:
    model = ("model.n_layer=1", "model.n_head=4", "model.n_embd=32", "model.seq_len=16", "precision.dtype=fp32")
    batch = ("training.global_batch_size=8", "training.micro_batch_size=2")
    return load_config(None, [f"data.path={data}", f"run_dir={data.parent / 'run'}", *model, *batch, *overrides])


def check_all(config: RunConfig, world: int) -> list[PretrainSetup]:
    """Every rank by itself; no process group exists, so that a collective would fail."""
    assert not torch.distributed.is_initialized()
    return [check(config, Runtime(rank, rank, world, CPU)) for rank in range(world)]


def refusal(config: RunConfig, world: int = 2) -> str:
    """The message, which is the same on every rank and has its three parts."""
    messages = set()
    for rank in range(world):
        with pytest.raises(UserError) as caught:
            check(config, Runtime(rank, rank, world, CPU))
        messages.add(str(caught.value))
    (message,) = messages
    assert "\n  rule: " in message
    assert "\n  fix:  " in message
    assert not Path(config.run_dir).is_dir(), "nothing is written by a run that cannot start"
    return message


def test_a_run_that_can_start(tiny_data: Path, tmp_path: Path) -> None:
    config = config_of(tiny_data, "parallel.tp=2", f"run_dir={tmp_path}")
    setups = check_all(config, 4)
    for rank, setup in enumerate(setups):
        assert (setup.dims.dp, setup.dims.tp, setup.plan.grad_accum_steps) == (2, 2, 2)
        assert setup.config.model.vocab_size == setup.tokenizer.vocab_size == 300
        assert setup.loader.dp_rank == rank // 2
    assert len({setup.loader.fingerprint(3) for setup in setups}) == 1


@pytest.mark.parametrize(
    ("world", "overrides", "parts"),
    [
        (3, (), ("training.global_batch_size = 8 does not divide over the ranks", "micro_batch_size 2 x dp_size 3 = 6",
                 "set training.global_batch_size to 6 or 12")),
        (3, ("parallel.tp=2",), ("parallel.tp = 2 does not divide the world: world_size 3 = dp x tp 2",)),
        (8, ("parallel.tp=8", "model.n_head=8", "model.vocab_multiple=10"),
         ("parallel.tp = 8 must divide the padded vocabulary (model.vocab_multiple = 10) = 300",)),
        (2, ("model.vocab_size=400",), ("model.vocab_size = 400, but the tokenizer of '", "has 300",
                                        "set model.vocab_size=300, or 0 to take it from the data")),
        (2, ("training.global_batch_size=100000",),
         ("too few for one batch of training.global_batch_size = 100000", "samples of model.seq_len = 16")),
        (2, ("parallel.tp=2", "parallel.zero_stage=0", "precision.dtype=bf16"),
         ("parallel.zero_stage = 0 with parallel.tp = 2 in torch.bfloat16",)),
        (1, ("parallel.offload_optimizer=true",), ("parallel.offload_optimizer = true with one process",)),
        (2, ("data.sources=[{path='a', weight=1.0}, {path='b', weight=1.0}]",),
         ("data.sources gives 2 weights, but '", "holds 1 sources")),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_world_or_the_data(
    data: Path, world: int, overrides: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    message = refusal(config_of(data, *overrides), world)
    assert all(part in message for part in parts), message


def test_data_that_is_not_prepared(tmp_path: Path) -> None:
    message = refusal(config_of(tmp_path / "data"))
    assert message.startswith(f"data.path = '{tmp_path / 'data'}' holds no prepared data")
    assert "run `dgpt prepare` with this file first" in message


def test_shards_of_another_tokenizer(data: Path) -> None:
    index = json.loads((data / "index.json").read_text())
    ours, index["tokenizer"]["hash"] = index["tokenizer"]["hash"], "f" * 64
    (data / "index.json").write_text(json.dumps(index))
    message = refusal(config_of(data))
    assert message.startswith(
        f"tokenizer {ours[:12]} of 300 ids does not fit the shards in '{data}', which ffffffffffff"
    )


def shard_of(data: Path) -> Path:
    """The second of several."""
    (first,) = data.glob("*/train_00000.bin")
    return first.with_name("train_00001.bin")


def test_a_missing_shard(data: Path) -> None:
    shard = shard_of(data)
    shard.unlink()
    message = refusal(config_of(data))
    assert message.startswith(f"data.path: file '{shard}' is missing; expected 8000 bytes of sha256 ")


def test_a_truncated_shard(data: Path) -> None:
    shard = shard_of(data)
    os.truncate(shard, 7998)
    message = refusal(config_of(data))
    assert message.startswith(f"data.path: file '{shard}' is 7998 bytes; expected 8000 bytes of sha256 ")


def test_a_flipped_bit_in_a_shard(data: Path) -> None:
    shard = shard_of(data)
    content = bytearray(shard.read_bytes())
    expected = sha256(content).hexdigest()
    content[1000] ^= 1
    shard.write_bytes(content)
    hashes = f"expected sha256 {expected}, found {sha256(content).hexdigest()}\n"
    assert refusal(config_of(data), world=1).startswith(f"data.path: file '{shard}' is corrupted: {hashes}")


@pytest.mark.parametrize("place", ["deep", "deep/run", "deep/run/checkpoints", "deep/run/tokenizer", "deep/run/lock"])
def test_a_file_where_the_run_folder_would_be(tiny_data: Path, tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with pytest.raises(UserError, match=rf"run_dir = '.*run' cannot be written: there is a file at '{path}'"):
        check(config_of(tiny_data, f"run_dir={tmp_path / 'deep/run'}"), Runtime(0, 0, 1, CPU))


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl"])
def test_a_folder_where_a_file_would_be(tiny_data: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"cannot be written: '{tmp_path / name}' is no file"):
        check(config_of(tiny_data, f"run_dir={tmp_path}"), Runtime(0, 0, 1, CPU))


@pytest.mark.parametrize("locked", ["", "run", "run/checkpoints"])
def test_no_permission_to_write(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str) -> None:
    """As root, everything is permitted; hence a stand-in for the kernel's answer."""
    place = tmp_path / locked
    place.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != place)
    with pytest.raises(UserError, match=rf"run_dir = '.*run' cannot be written: no permission at '{place}'"):
        check(config_of(tiny_data, f"run_dir={tmp_path / 'run'}"), Runtime(0, 0, 1, CPU))
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    with pytest.raises(UserError, match=rf"cannot be written: a read-only file system holds '{place}'"):
        check(config_of(tiny_data, f"run_dir={tmp_path / 'run'}"), Runtime(0, 0, 1, CPU))


def test_the_data_hash_is_of_contents_not_of_places(tiny_data: Path, data: Path) -> None:
    assert hash_of_data(data) == hash_of_data(tiny_data)
    index = json.loads((data / "index.json").read_text())
    index["files"]["tokenizer.model"]["sha256"] = "0" * 64
    (data / "index.json").write_text(json.dumps(index))
    assert hash_of_data(data) != hash_of_data(tiny_data)


def test_the_compute_type_is_as_set_or_what_the_device_does_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("dgpt.setup.has_fast_bf16", lambda device, fast=fast: fast)
        assert compute_dtype(load_config(None), CPU) == expected
        assert compute_dtype(load_config(None, ["precision.dtype=bf16"]), CPU) == torch.bfloat16
        assert compute_dtype(load_config(None, ["precision.dtype=fp32"]), CPU) == torch.float32


def test_a_run_folder_that_is_a_url(tiny_data: Path) -> None:
    message = refusal(config_of(tiny_data, "run_dir=s3://bucket/run"))
    assert message.startswith("run_dir = 's3://bucket/run' is a URL\n")


def test_a_disk_without_room_for_one_checkpoint(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(UserError, match=r"has 10,000 bytes free, a checkpoint takes \d+,\d+"):
        check_space(config_of(tiny_data, f"run_dir={tmp_path}"), 10**6)
