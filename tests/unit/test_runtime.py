"""What runtime reads from the environment."""

import time
from pathlib import Path

import pytest
import torch

from dgpt import runtime


def test_a_process_alone_is_rank_0_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NNODES", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # so that `start` leaves the environment of this process alone
    process = runtime.start(timeout_seconds=1)
    assert (process.rank, process.local_rank, process.world_size, process.is_main) == (0, 0, 1, True)
    assert (runtime.under_torchrun(), runtime.rank(), runtime.nodes(), runtime.report_file()) == (False, 0, 1, None)


def test_a_worker_reports_to_the_agent_and_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "logs/error.json")
    assert runtime.report_file() is None  # plain torchrun would print the report as a table
    monkeypatch.setenv(runtime.AGENT_PID, "1")
    assert runtime.report_file() == Path("logs/error.json")


def test_fast_bf16_is_claimed_only_where_it_is_faster() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not runtime.has_fast_bf16(device):
        pytest.skip("this device has no bf16 units")
    rounds = ((seconds(torch.bfloat16, device), seconds(torch.float32, device)) for _ in range(50))
    assert any(bf16 < fp32 for bf16, fp32 in rounds)  # whatever else the machine does; emulated bf16 never is


def seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The best of five products of 512 x 512 matrices."""
    a = torch.ones(512, 512, dtype=dtype, device=device)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (a @ a).sum().item()
        times.append(time.perf_counter() - start)
    return min(times)
