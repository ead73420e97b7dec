"""A real Slurm cluster on this machine: munged, slurmctld and a slurmd for each node, idle in half a second.

`Cluster` gives each node a TCP port of this machine and needs no privileges; hosts.py gives each a host of its own.
Nothing outlives the process that started the cluster, however that ends: keeper.py.
"""

import getpass
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import Self, TypeVar

import psutil

T = TypeVar("T")
HERE = Path(__file__).parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv", "unshare", "nsenter", "ip")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian has the daemons
DAEMONS = ("munged", "slurmctld", "slurmscriptd", "slurmd")
SETTINGS = """
SlurmUser={user}
SlurmdUser={user}
SlurmdTimeout={slurmd_timeout}
FirstJobId={first_job}
AuthInfo=socket={folder}/run/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/{proctrack}
{addresses} CPUs=8 RealMemory=4000 Gres=gpu:h100:{gpus} State=UNKNOWN
PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes={nodes} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def wait_for(look: Callable[[], T], what: str, seconds: float = 30.0, tell: Callable[[], object] = str) -> T:
    """What `look` returns, once that is true; if it does not become true, the error tells what `tell` finds then."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{tell()}"
        time.sleep(0.05)
    return seen


class Cluster:
    """Nodes n0, n1, ... on ports of this machine. `with Cluster(folder) as cluster:` has them idle."""

    flavour = "ports"
    proctrack = "linuxproc"  # the folders of proctrack/cgroup would be shared with other clusters

    @classmethod
    def obstacle(cls) -> str:
        """Why there can be no such cluster here; empty if there can."""
        missing = [program for program in PROGRAMS if not shutil.which(program, path=PATH)]
        return f"not here: {', '.join(missing)}; as root on Debian `make slurm` installs them" if missing else ""

    def __init__(self, folder: Path, *, nodes: int = 4, gpus: int = 0, slurmd_timeout: int = 10) -> None:
        """folder: for configuration, state and logs; a short path, as sockets are below. gpus: fake ones of each node.
        slurmd_timeout: seconds of silence after which a node counts as down."""
        self.folder, self.gpus, self.slurmd_timeout = folder, gpus, slurmd_timeout
        self.names = [f"n{number}" for number in range(nodes)]
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": f"{folder}/etc/slurm.conf",
                            "TMPDIR": f"{folder}/scratch"}  # fmt: skip
        self._kept: list[tuple[str, subprocess.Popen[str]]] = []  # the host that it belongs to, and a keeper

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.stop)
            for name in ("etc", "run", "log", "state", "spool", "dev", "scratch"):
                (self.folder / name).mkdir(parents=True)
            self._write_config()
            self._start_hosts()
            self._start_munged()
            self.start_slurmctld()
            for name in self.names:
                self.start_slurmd(name)
            self.wait_for_nodes(*self.names)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill every process of the cluster, all hosts at once."""
        for _, keeper in self._kept:
            keeper.stdin.close()  # type: ignore[union-attr]
        for _, keeper in self._kept:
            keeper.wait(timeout=20)
            keeper.stdout.close()  # type: ignore[union-attr]
        self._kept.clear()

    # what a user does

    def run(self, *command: str, node: str = "ctl", cwd: Path | None = None, check: bool = True, timeout: float = 60,
            **environment: str) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a client of Slurm, or anything, where users log in or on a node. It dies with this process."""
        done = subprocess.run(
            ["setpriv", "--pdeathsig", "KILL", "--", *self._enter(node, cwd or self.folder), *command], text=True,
            env={**self.environment, **environment}, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout,
            cwd=cwd or self.folder,
        )  # fmt: skip
        assert not (check and done.returncode), f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def states(self) -> dict[str, str]:
        """Node -> "idle", "allocated", "mixed", "completing", "drained", "down", ...; with * if it does not respond."""
        lines = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T", check=False).stdout.splitlines()
        return dict(line.split() for line in lines)

    def wait_for_nodes(self, *names: str, state: str = "idle", seconds: float = 30) -> None:
        def there() -> bool:
            states = self.states()
            return all(states.get(name) == state for name in names)

        wait_for(there, f"nodes {', '.join(names)} {state}; see {self.folder}/log", seconds, self.states)

    # processes

    def processes(self, host: str = "") -> list[psutil.Process]:
        """Those of jobs, on one host or on all: the steps of Slurm, and all that descends from them."""
        return [process for process in self._descendants(host) if _name(process) not in ("", *DAEMONS)]

    def kill(self, program: str, host: str, signal: Signals = SIGKILL) -> None:
        """End a daemon of a host."""
        found = [process for process in self._descendants(host) if _name(process) == program]
        assert found, f"no {program} on {host}"
        for process in found:
            process.send_signal(signal)
        wait_for(lambda: not any(_name(process) for process in found), f"{program} of {host} ends")

    def freeze(self, host: str) -> None:
        """Stop what jobs run on a node; its slurmd lives on."""
        for process in self.processes(host):
            process.send_signal(SIGSTOP)

    def thaw(self, host: str) -> None:
        for process in self.processes(host):
            process.send_signal(SIGCONT)

    def _descendants(self, host: str) -> Iterator[psutil.Process]:
        for name, keeper in self._kept:
            if host in ("", name):
                yield from psutil.Process(keeper.pid).children(recursive=True)

    # daemons

    def start_slurmctld(self) -> None:
        self._start_daemon("ctl", "slurmctld")
        wait_for(lambda: "is UP" in self.run("scontrol", "ping", check=False).stdout, "slurmctld answers")

    def restart_slurmctld(self) -> None:
        self.kill("slurmctld", "ctl", SIGTERM)
        self.start_slurmctld()

    def start_slurmd(self, name: str) -> None:
        self._start_daemon(name, "slurmd", "-N", name)

    def _start_munged(self) -> None:
        """One for all nodes: its socket is a file. --force: it dislikes that other users cannot reach the folder."""
        key, run, log = self.folder / "etc" / "munge.key", self.folder / "run", self.folder / "log"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        self._ready(self._keep("munge", _and_say_ready(
            "munged", "--force", f"--key-file={key}", f"--socket={run}/munge.sock", f"--pid-file={run}/munged.pid",
            f"--log-file={log}/munged.log", f"--seed-file={run}/munged.seed",
        )))  # fmt: skip

    def _keep(self, host: str, command: list[str], cgroup: str = "-") -> subprocess.Popen[str]:
        with (self.folder / "log" / "keeper.log").open("a") as log:
            keeper = subprocess.Popen(
                [sys.executable, "-IS", str(HERE / "keeper.py"), cgroup, *command], env=self.environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._kept.append((host, keeper))
        return keeper

    def _ready(self, keeper: subprocess.Popen[str]) -> None:
        """Wait until what it keeps is up."""
        log = self.folder / "log"
        assert keeper.stdout
        assert keeper.stdout.readline() == "ready\n", f"see {log}\n{(log / 'keeper.log').read_text()}"

    # what a flavour has of its own

    def _start_hosts(self) -> None:
        """There is one, this machine."""

    def _start_daemon(self, host: str, *command: str) -> None:
        self._ready(self._keep(host, _and_say_ready(*command)))

    def _enter(self, node: str, cwd: Path) -> list[str]:
        """The command before a command that shall run on a node."""
        return []

    def _addresses(self) -> str:
        machine, count = socket.gethostname(), len(self.names)
        port = free_ports(count + 1)
        return (f"SlurmctldHost={machine}(127.0.0.1)\nSlurmctldPort={port}\nNodeName={self._nodes} "
                f"NodeHostname={machine} NodeAddr=127.0.0.1 Port=[{port + 1}-{port + count}]")  # fmt: skip

    # configuration

    @property
    def _nodes(self) -> str:
        return f"n[0-{len(self.names) - 1}]"

    def _write_config(self) -> None:
        own = SETTINGS.format(
            user=getpass.getuser(), slurmd_timeout=self.slurmd_timeout, folder=self.folder, proctrack=self.proctrack,
            addresses=self._addresses(), first_job=random.randrange(1000, 10**6), gpus=self.gpus, nodes=self._nodes,
        )  # fmt: skip
        etc = self.folder / "etc"
        (etc / "slurm.conf").write_text((HERE / "slurm.conf").read_text() + own)
        (etc / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\n"
        )
        if self.gpus:
            self._fake_gpus(etc / "gres.conf")

    def _fake_gpus(self, path: Path) -> None:
        """Links to /dev/null pass for devices, and their names number them for CUDA_VISIBLE_DEVICES."""
        for number in range(self.gpus):
            (self.folder / "dev" / f"nvidia{number}").symlink_to("/dev/null")
        path.write_text(f"Name=gpu Type=h100 File={self.folder}/dev/nvidia[0-{self.gpus - 1}]\n")


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row, below those that the kernel gives to clients."""
    for port in random.sample(range(15000, 32000), 1000):
        with ExitStack() as stack, suppress(OSError):
            for number in range(port, port + count):
                stack.enter_context(socket.socket()).bind(("0.0.0.0", number))
            return port
    raise AssertionError("no free ports")


def _and_say_ready(*daemon: str) -> list[str]:
    """A daemon returns when it runs in the background."""
    return ["sh", "-c", '"$@" >/dev/null && echo ready', "sh", *daemon]


def _name(process: psutil.Process) -> str:
    """Empty if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return "" if process.status() == psutil.STATUS_ZOMBIE else process.name()
    return ""
