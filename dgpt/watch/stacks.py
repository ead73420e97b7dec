"""Where the Python code of a process is: py-spy if there is one, or else faulthandler in the process itself."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from dgpt.watch.heartbeat import stack_file

ANSWER_SECONDS = 2.0
SETTLE_SECONDS = 0.1  # from the first line of an answer to its last
NO_ANSWER = "no stack: py-spy is not here or not allowed, and the process {why}"


def stacks(folder: Path, processes: Mapping[int, int], stopped: set[int], tool: str | None = None) -> dict[int, str]:
    """The stacks of all threads of each rank, or why there are none.

    processes: rank -> pid. stopped: ranks whose process cannot answer, as after SIGSTOP; py-spy can look into it even
    then. tool: py-spy; by default the one in PATH.
    """
    found = _by_tool(tool or shutil.which("py-spy"), processes)
    asked = {rank: pid for rank, pid in processes.items() if rank not in found and rank not in stopped}
    found |= _by_signal(folder, asked)
    for rank in processes.keys() - found.keys():
        why = "is stopped, so it cannot answer" if rank in stopped else f"gave none in {ANSWER_SECONDS:g} s"
        found[rank] = NO_ANSWER.format(why=why)
    return dict(sorted(found.items()))


def _by_tool(tool: str | None, processes: Mapping[int, int]) -> dict[int, str]:
    """Without pausing the process, all at the same time; nothing of those that it may not look into."""
    if tool is None:
        return {}
    running = {
        rank: subprocess.Popen([tool, "dump", "--nonblocking", "--pid", str(pid)], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for rank, pid in processes.items()
    }  # fmt: skip
    found, deadline = {}, time.monotonic() + ANSWER_SECONDS
    for rank, process in running.items():
        try:
            output, _ = process.communicate(timeout=max(0.01, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            continue
        if process.returncode == 0 and output.strip():
            found[rank] = output.strip()
    return found


def _by_signal(folder: Path, processes: Mapping[int, int]) -> dict[int, str]:
    """What the ranks write when SIGUSR2 comes (dgpt.watch.heartbeat)."""
    for pid in processes.values():
        os.kill(pid, signal.SIGUSR2)
    found: dict[int, str] = {}
    deadline = time.monotonic() + ANSWER_SECONDS
    while len(found) < len(processes) and time.monotonic() < deadline:
        time.sleep(SETTLE_SECONDS)
        texts = {rank: stack_file(folder, rank).read_text(encoding="utf-8", errors="replace") for rank in processes}
        found = {rank: text.strip() for rank, text in texts.items() if text.strip()}
    return found
