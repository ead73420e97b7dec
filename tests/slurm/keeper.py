"""Keep a command, and all that comes of it, for as long as somebody wants it: `keeper.py CGROUP COMMAND...`.

When standard input ends, because the tests closed it, ended or were killed, every process that descends from COMMAND is
killed, whatever sessions, users and parents it has given itself: the keeper is their subreaper (prctl(2)), so that
orphans come to it and none can leave. CGROUP is a folder of the v1 freezer hierarchy, made for COMMAND and removed at
the end, or -.
"""

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # <sys/prctl.h>


def parents() -> dict[int, int]:
    """Process id -> that of its parent."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            found[int(pid)] = int(Path("/proc", pid, "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return found


def descendants(root: int) -> set[int]:
    """Of the process `root`, without itself."""
    parent_of, known, before = parents(), {root}, 0
    while before < len(known):
        before = len(known)
        known |= {pid for pid, parent in parent_of.items() if parent in known}
    return known - {root}


def reap(*_: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_all(cgroup: Path | None) -> None:
    """Kill until nothing is left; what is frozen cannot die before it thaws."""
    while ours := descendants(os.getpid()):
        for pid in ours:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for state in cgroup.rglob("freezer.state") if cgroup else ():
            with suppress(OSError):
                state.write_text("THAWED")
        time.sleep(0.005)
    for folder, *_ in os.walk(cgroup, topdown=False) if cgroup else ():
        os.rmdir(folder)


def main(group: str, *command: str) -> None:
    cgroup = None if group == "-" else Path(group)
    if cgroup:
        cgroup.mkdir()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, reap)  # a handler, not SIG_IGN, which COMMAND would inherit
    os.posix_spawnp(
        command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    )
    os.dup2(2, 1)  # standard output is COMMAND's alone: it ends when COMMAND closes it
    sys.stdin.read()
    end_all(cgroup)


if __name__ == "__main__":
    main(*sys.argv[1:])
