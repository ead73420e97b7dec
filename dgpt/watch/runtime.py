"""What an agent tells its workers through the environment; no torch, unlike dgpt.runtime."""

import os
from pathlib import Path

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
