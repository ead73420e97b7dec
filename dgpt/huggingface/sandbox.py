"""What a process can do no more after `close`: reach the network, start programs, or use more than it was given."""

import ctypes
import platform
import resource
import struct
import sys
from pathlib import Path

HEADROOM_BYTES = 1 << 30
# <asm/unistd.h>: socket, socketpair, connect, execve, execveat, ptrace, io_uring_setup; and <linux/audit.h>
FORBIDDEN = {
    "x86_64": (0xC000003E, (41, 53, 42, 59, 322, 101, 425)),
    "aarch64": (0xC00000B7, (198, 199, 203, 221, 281, 117, 425)),
}
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # <linux/bpf_common.h>
KILL, REFUSE, ALLOW = 0x80000000, 0x00050001, 0x7FFF0000  # <linux/seccomp.h>; refuse: EPERM
X32 = 0x40000000  # system calls of another ABI, under other numbers
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2  # <linux/prctl.h>, <linux/seccomp.h>


def close(more_bytes: int, cpu_seconds: int) -> None:
    """Limit this process, for good: memory beyond today's, CPU time, core files, and system calls (seccomp(2)).

    Raises OSError where the kernel cannot do that.
    """
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    memory = pages * resource.getpagesize() + more_bytes + HEADROOM_BYTES
    for what, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, cpu_seconds), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (limit, limit))
    _filter(*_table())


def _table() -> tuple[int, tuple[int, ...]]:
    machine = platform.machine()
    if sys.platform != "linux" or machine not in FORBIDDEN:
        raise OSError(
            f"the system calls of {sys.platform} on {machine} cannot be limited here (Linux on x86_64 or ARM)"
        )
    return FORBIDDEN[machine]


def _filter(architecture: int, calls: tuple[int, ...]) -> None:
    """Install a BPF program: another architecture ends the process, a forbidden call gives EPERM."""
    count = len(calls)
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0),
               (AT_LEAST, count + 1, 0, X32)]  # fmt: skip
    program += [(EQUAL, count - i, 0, call) for i, call in enumerate(calls)]
    program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    memory = ctypes.create_string_buffer(code)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(memory)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SECCOMP, FILTER, ctypes.byref(header))):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "the kernel refuses a filter of system calls")
