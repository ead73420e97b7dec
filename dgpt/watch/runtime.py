"""What an agent tells its workers through the environment; no torch, unlike dgpt.runtime."""

import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

AGENT_PID = "DGPT_AGENT_PID"
BEATS = "DGPT_HEARTBEATS"


def launched() -> bool:
    """Whether this is an agent, or a worker of one."""
    return AGENT_PID in os.environ


def heartbeat_folder() -> Path | None:
    """Where a rank gives signs of life, on this node; None if no agent looks."""
    path = os.environ.get(BEATS)
    return Path(path) if path and launched() else None


def mark_as_agent(heartbeats: Path) -> None:
    """Let the workers that this process will start know their parent, and its folder."""
    os.environ[AGENT_PID], os.environ[BEATS] = str(os.getpid()), str(heartbeats)


def become(environment: Mapping[str, str]) -> None:
    """Let a forked process have this environment and no other, and a name that `ps` and `top` show."""
    os.environ.clear()
    os.environ.update(environment)
    with suppress(OSError):  # not Linux
        Path("/proc/self/comm").write_text(f"dgpt rank {os.environ.get('RANK', '')}", encoding="ascii")


def under_torchrun() -> bool:
    """Whether a launcher has already started this process as a rank."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def nodes() -> int:
    """Number of nodes that launch/torchrun.sh is told of (NNODES); 1 unless set."""
    return int(os.environ.get("NNODES", "1"))


def built_for_gpus() -> bool:
    """Whether the installed torch knows of GPUs, of NVIDIA or AMD, by its version.py, which imports nothing."""
    found = find_spec("torch")
    build = run_path(str(Path(found.origin or "").with_name("version.py"))) if found else {}
    return any(build.get(name) for name in ("cuda", "hip"))
