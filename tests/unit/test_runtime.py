"""What runtime reads from the environment."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dgpt import runtime
from dgpt.watch.runtime import nodes, under_torchrun


def test_a_process_alone_is_rank_0_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NNODES", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # so that `start` leaves the environment of this process alone
    process = runtime.start(timeout_seconds=1)
    assert (process.rank, process.local_rank, process.world_size, process.is_main) == (0, 0, 1, True)
    assert (under_torchrun(), runtime.rank(), nodes(), runtime.report_file()) == (False, 0, 1, None)


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


def test_a_single_worker_ends_with_its_agent_too() -> None:
    """As one that finds its agent gone when it has asked the kernel to be killed with it."""
    environment = {**os.environ, runtime.AGENT_PID: "1", "WORLD_SIZE": "1"}
    command = [sys.executable, "-c", "from dgpt import runtime; runtime.identify(); print('alive')"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")


HANGING = """
import sys, threading, time
from unittest.mock import patch
from dgpt import runtime
runtime.LEAVING_SECONDS = 0.2
with patch.object(runtime.dist, "is_initialized", lambda: True), \\
     patch.object(runtime.dist, "destroy_process_group", lambda: time.sleep(1000)):
    runtime.finish()
print("left", flush=True)
runtime.end_within(0.2)
time.sleep(1000)
"""


def test_nothing_waits_for_a_process_group_that_hangs() -> None:
    """`finish` comes back, and after `end_within` the process ends with its stacks in its log."""
    environment = {**os.environ, runtime.AGENT_PID: str(os.getpid())}
    done = subprocess.run([sys.executable, "-c", HANGING], env=environment, capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "left\n")
    assert 'File "<string>", line 11 in <module>' in done.stderr
