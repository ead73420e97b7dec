"""The cluster whose nodes are hosts: own network, host name, processes, /dev/shm and scratch. Needs root.

Each host is one `unshare` of Linux; "ctl" has slurmctld, the users and the switch, a bridge; so addresses and names
are the same in all clusters and no two of them can meet. Here a network can be cut and a node can lose its power, and
with cgroup v1 processes are tracked as on real clusters (proctrack/cgroup), which decides whom a signal reaches. The
file system is the machine's: it stands for the shared storage.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
from cluster import HERE, Cluster

FREEZER = Path("/sys/fs/cgroup/freezer")
NAMESPACES = ("--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")
NETWORK = "10.77.0"
SLURMD_PORT = 6818
TCP_LISTEN = "0A"  # in /proc/net/tcp


class Hosts(Cluster):
    """Nodes n0, n1, ... with hosts of their own; addresses 10.77.0.10, 10.77.0.11, ... on eth0."""

    flavour = "hosts"
    proctrack = "cgroup" if (FREEZER / "tasks").exists() and os.access(FREEZER, os.W_OK) else "linuxproc"

    @classmethod
    def obstacle(cls) -> str:
        if reason := super().obstacle():
            return reason
        if os.getuid():
            return "a host of its own for each node needs root"
        tried = ["unshare", *NAMESPACES, "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(tried, capture_output=True, text=True).stderr.strip()

    # faults

    def cut(self, name: str) -> None:
        """The switch drops all that comes and goes; the node still sees its link up."""
        self._switch(f"link set {self._cable(name)} nomaster")

    def isolate(self, name: str) -> None:
        """Isolated nodes reach ctl, and not each other."""
        self._switch(f"link set {self._cable(name)} type bridge_slave isolated on")

    def heal(self, name: str) -> None:
        """Undo `cut` and `isolate`."""
        self._switch(
            f"link set {self._cable(name)} master br0", f"link set {self._cable(name)} type bridge_slave isolated off"
        )

    def crash(self, name: str) -> None:
        """Power loss: no word leaves the node."""
        self.cut(name)
        for host, keeper in self._kept:
            if host == name:
                keeper.communicate()  # closes its standard input
        self._kept = [kept for kept in self._kept if kept[0] != name]
        del self._inits[name]

    def boot(self, name: str) -> None:
        """After a crash."""
        self.run("ip", "link", "delete", self._cable(name), check=False)  # data on its way keeps a dead host's cable
        self._power_on(name)
        self._plug_in(name)
        self.start_slurmd(name)

    # what jobs leave behind

    def listening(self, name: str) -> set[int]:
        """TCP ports of a node, without slurmd's."""
        tables = [Path(f"/proc/{self._inits[name]}/net/{table}").read_text() for table in ("tcp", "tcp6")]
        rows = [line.split() for table in tables for line in table.splitlines()[1:]]
        ports = {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == TCP_LISTEN}
        return ports - {SLURMD_PORT}

    def shared_memory(self, name: str) -> list[str]:
        """What is in /dev/shm of a node."""
        return os.listdir(f"/proc/{self._inits[name]}/root/dev/shm")

    # hosts

    def _start_hosts(self) -> None:
        self._inits: dict[str, int] = {}  # host -> its process 1, as this machine counts
        names = [
            f"{self._address(name)} {name}\n::ffff:{self._address(name)} {name}\n" for name in ("ctl", *self.names)
        ]
        (self.folder / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{''.join(names)}")
        self._power_on("ctl", *self.names)
        self._switch("link add br0 type bridge", f"addr add {self._address('ctl')}/24 dev br0", "link set br0 up")
        for name in self.names:
            self._plug_in(name)

    def _power_on(self, *names: str) -> None:
        """Boot hosts, all at once."""
        keepers = []
        for name in names:
            number = len(self._kept)
            group = str(FREEZER / f"dgpt-{os.getpid()}-{id(self):x}-{number}") if self.proctrack == "cgroup" else "-"
            host = ["unshare", *NAMESPACES, "sh", str(HERE / "host.sh"), name, str(self.folder), group]
            keepers.append(self._keep(name, host, group))
        for name, keeper in zip(names, keepers, strict=True):
            self._ready(keeper)
            unshare = psutil.Process(keeper.pid).children()[0]
            self._inits[name] = unshare.children()[0].pid

    def _plug_in(self, name: str) -> None:
        """A cable from the switch to eth0."""
        cable = self._cable(name)
        self._switch(f"link add {cable} type veth peer name eth0 netns {self._inits[name]}",
                     f"link set {cable} master br0", f"link set {cable} up")  # fmt: skip
        self._ip(name, f"addr add {self._address(name)}/24 dev eth0", "link set eth0 up")

    def _switch(self, *commands: str) -> None:
        self._ip("ctl", *commands)

    def _ip(self, host: str, *commands: str) -> None:
        """Commands of ip(8) in the network of a host."""
        subprocess.run(["nsenter", "-t", str(self._inits[host]), "-n", "ip", "-batch", "-"], input="\n".join(commands),
                       text=True, check=True, env=self.environment)  # fmt: skip

    def _cable(self, name: str) -> str:
        return f"v{self.names.index(name)}"

    def _address(self, name: str) -> str:
        return f"{NETWORK}.{10 + self.names.index(name) if name in self.names else 1}"

    # what `Cluster` leaves to its flavours

    def _start_daemon(self, host: str, *command: str) -> None:
        self.run(*command, node=host)

    def _enter(self, node: str, cwd: Path) -> list[str]:
        namespaces = ["-m", "-u", "-n", "-i", "-p", *(["-C"] if self.proctrack == "cgroup" else [])]
        return ["nsenter", "-t", str(self._inits[node]), *namespaces, f"--wd={cwd}", "--"]

    def _addresses(self) -> str:
        last = 9 + len(self.names)
        return (f"SlurmctldHost=ctl({self._address('ctl')})\nSlurmctldPort=6817\nSlurmdPort={SLURMD_PORT}\n"
                f"NodeName={self._nodes} NodeAddr={NETWORK}.[10-{last}]")  # fmt: skip

    def _descendants(self, host: str) -> Iterator[psutil.Process]:
        for init in [self._inits[host]] if host else self._inits.values():
            yield from psutil.Process(init).children(recursive=True)
