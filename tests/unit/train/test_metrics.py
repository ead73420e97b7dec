"""What Monitor computes and records, and that a resumed run records each step once."""

import io
import json
import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dgpt.config import RunConfig, parse_config
from dgpt.train.console import Console, duration
from dgpt.train.metrics import Monitor, StepMetrics, peak_memory_gib, perplexity
from dgpt.train.rows import RowFile, read_rows


def config(**logging: Any) -> RunConfig:
    return parse_config(
        {"training": {"steps": 100}, "schedule": {"warmup_steps": 0}, "logging": {"tensorboard": False, **logging}},
        "test",
    )


def monitor(folder: Path, out: io.StringIO, settings: RunConfig | None = None, **changes: Any) -> Monitor:
    facts: dict[str, Any] = {"run_dir": folder, "is_main": True, "start_step": 0, "start_tokens": 0,
                             "flops_per_token": 6e6, "world_size": 4, "device": torch.device("cpu"),
                             "console": Console(total_steps=100, stream=out), **changes}  # fmt: skip
    return Monitor(settings or config(), **facts)


def at(step: int, seconds: dict[str, float] | None = None, loss: float = 2.0) -> StepMetrics:
    return StepMetrics(step=step, loss=loss, lr=1e-3, grad_norm=0.5, tokens=1000 * step, samples=8 * step,
                       epoch=step / 50, seconds=seconds or {})  # fmt: skip


def rows(folder: Path) -> list[dict[str, float | None]]:
    return list(read_rows(folder / "metrics.jsonl"))


def test_speed_is_over_the_wall_time_without_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 115.0])  # at the start, and after 10 steps of 1 s with 5 s of pauses
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    out = io.StringIO()
    with monitor(tmp_path, out, peak_flops=1e9) as one:
        one.log_step(at(10, {"data": 0.1, "forward": 3.0, "checkpoint": 3.0, "evaluate": 2.0}))
    (row,) = rows(tmp_path)
    assert row["speed/tokens_per_second"] == 1000
    assert row["speed/tokens_per_second_per_device"] == 250
    assert row["speed/seconds_per_step"] == 1.0
    assert row["speed/mfu_percent"] == pytest.approx(100 * 6e6 * 1000 / (4 * 1e9))
    assert (row["time/data_seconds"], row["time/forward_seconds"]) == pytest.approx((0.01, 0.3))  # per step
    assert (row["time/checkpoint_seconds"], row["time/evaluate_seconds"]) == (3.0, 2.0)  # in all
    assert out.getvalue() == (
        "step  10/100 | loss 2.0000 | lr 1.00e-03 | grad norm 0.500 | 1,000 tokens/s | 250/device | MFU 150.0%"
        " | ETA 0:02:15\n"  # 90 steps at 1.5 s each, pauses included
    )


def test_mfu_is_left_out_where_the_peak_is_unknown_and_the_setting_comes_first(tmp_path: Path) -> None:
    for name, settings, peak in (("unknown", config(), None), ("set", config(peak_tflops=2.0), 1e9)):
        with monitor(tmp_path / name, io.StringIO(), settings, peak_flops=peak) as one:
            one.log_step(at(1))
    (unknown,), (known,) = rows(tmp_path / "unknown"), rows(tmp_path / "set")
    assert "speed/mfu_percent" not in unknown
    tokens_per_second = known["speed/tokens_per_second"]
    assert tokens_per_second is not None
    assert known["speed/mfu_percent"] == pytest.approx(100 * 6e6 * tokens_per_second / (4 * 2e12))


def test_position_and_validation_are_recorded(tmp_path: Path) -> None:
    out = io.StringIO()
    with monitor(tmp_path, out) as one:
        one.log_step(at(25))
        one.log_eval(25, math.log(20))
    train, validation = rows(tmp_path)
    assert [train[f"progress/{name}"] for name in ("tokens", "samples", "epoch")] == [25_000, 200, 0.5]
    assert validation["loss/validation"] == math.log(20)
    assert validation["loss/validation_perplexity"] == pytest.approx(20)
    assert out.getvalue().splitlines()[1] == "step  25/100 | validation loss 2.9957 | perplexity 20.00"


def test_other_ranks_write_and_print_nothing(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(total_steps=100, enabled=False, stream=out)
    with monitor(tmp_path, out, config(tensorboard=True), is_main=False, console=console) as one:
        one.log_step(at(1))
        one.log_eval(1, 2.0)
        one.log_text("config", "text", 1)
    assert not list(tmp_path.iterdir())
    assert out.getvalue() == ""


def test_resumed_run_replaces_the_rows_beyond_its_start_and_a_torn_line(tmp_path: Path) -> None:
    with monitor(tmp_path, io.StringIO()) as first:
        for step in (10, 20, 30):
            first.log_step(at(step, loss=1.0))
        first.log_eval(20, 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss/tr')  # kill -9 in the middle of a write
    with monitor(tmp_path, io.StringIO(), start_step=20) as resumed:
        resumed.log_step(at(30, loss=3.0))
    assert [(row["step"], row.get("loss/train")) for row in rows(tmp_path)] == [(10, 1), (20, 1), (20, None), (30, 3)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Lets no file of this process grow beyond a number of bytes: to a writer, a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_points_and_no_run(tmp_path: Path, file_limit: Callable[[int], None]) -> None:
    out = io.StringIO()
    with monitor(tmp_path, out, config(tensorboard=True)) as one:
        one.log_step(at(1))
        one.log_text("config", "before", 1)
        file_limit((tmp_path / "metrics.jsonl").stat().st_size + 100)  # less than a row
        for step in (2, 3):
            one.log_step(at(step))
            one.log_text("sample", "full", step)
        file_limit(resource.RLIM_INFINITY)
        one.log_step(at(4))
    assert [row["step"] for row in rows(tmp_path)] == [1, 4]
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == [1, 4], "half a row was taken back"
    assert out.getvalue().count("POINTS NOT WRITTEN, and training goes on: [Errno 2") == 2, "once for each file"
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [1, 4]


def test_rows_are_strict_json(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "metrics.jsonl", 0)
    file.add({"a": math.inf, "b": math.nan, "c": 1.5}, 7)
    file.close()
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (row["step"], row["a"], row["b"], row["c"]) == (7, None, None, 1.5)


def test_perplexity_of_a_hopeless_loss_is_infinite() -> None:
    assert perplexity(2.0) == math.exp(2.0)
    assert perplexity(1000.0) == math.inf


def test_memory_on_a_cpu_is_the_peak_resident_size() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the reference is Linux's own account")
    (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert peak_memory_gib(torch.device("cpu")) == pytest.approx(int(peak) / 2**20, rel=0.05)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (3723, "1:02:03"), (90061, "1 day, 1:01:01")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_slow_rank_is_named_once_and_recorded_at_every_step(tmp_path: Path) -> None:
    out, own = io.StringIO(), (100.0, 100.0, 180.0, 100.0)
    with monitor(tmp_path, out, nodes=["n0", "n0", "n1", "n1"]) as one:
        for step in range(1, 6):
            one.log_step(replace(at(step), own_seconds=own))
        assert out.getvalue().count("SLOW") == 1
        one.log_step(replace(at(6), own_seconds=(100.0,) * 4))
    assert (
        "step 3: SLOW: n1 (rank 2) is 1.8 x slower than the median before the gradients are summed\n" in out.getvalue()
    )
    found = [(row["straggler/rank"], row["straggler/slowdown"]) for row in rows(tmp_path)]
    assert found == [(2, pytest.approx(1.8))] * 5 + [(0, 1.0)]
