"""What is swept up after the ranks of a node: their children and their shared memory, and nobody else's."""

import mmap
import subprocess
import sys
import time
from pathlib import Path

from dgpt.watch.remains import remove_shared_memory

ORPHAN = """
import os, subprocess, sys
from pathlib import Path
from dgpt import runtime
from dgpt.watch.remains import end_children
runtime.prepare_agent()
worker = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!"], stdout=subprocess.PIPE, text=True)
orphan = worker.stdout.readline().strip()
worker.wait()
state = lambda: Path(f"/proc/{orphan}/stat").read_text().split()[2:4] if Path(f"/proc/{orphan}").exists() else None
print(state() == [state()[0], str(os.getpid())] and state()[0] != "Z")
end_children()
print(state())
"""


def test_what_a_dead_worker_started_ends_with_the_agent() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert before == "True", "it lives, and the agent is its parent now"
    assert after == "None" or after.startswith("['Z'")


def test_shared_memory_that_nobody_uses_goes(tmp_path: Path) -> None:
    old = tmp_path / "nccl-old"
    old.write_bytes(bytes(8))
    began = time.time() + 0.01
    while time.time() < began + 0.01:
        pass
    for name in ("nccl-AbCdEf", "torch_123_456_0", "sem.mp-x", "somebody", "mapped", "nccl-mapped", "nccl-open"):
        (tmp_path / name).write_bytes(bytes(8))
    with (tmp_path / "nccl-mapped").open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 8)
    with (tmp_path / "nccl-open").open("rb"):
        removed = remove_shared_memory(began, tmp_path)
    memory.close()
    assert sorted(path.name for path in removed) == ["nccl-AbCdEf", "sem.mp-x", "torch_123_456_0"]
    assert not any(path.exists() for path in removed)
    assert {path.name for path in tmp_path.iterdir()} == {"nccl-old", "somebody", "mapped", "nccl-mapped", "nccl-open"}
