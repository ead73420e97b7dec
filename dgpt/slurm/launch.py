"""How the ranks of a job are started: addresses, port, variables and the srun command, from what Slurm says."""

import errno
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from dgpt.errors import UserError
from dgpt.scripts import script
from dgpt.slurm import client
from dgpt.slurm.client import SlurmError
from dgpt.slurm.runtime import Job

PORTS = range(20000, 29000)  # below the ephemeral ports of Linux (32768), and without torchrun's 29500
WAIT_MARGIN_SECONDS = 60
PROBE_SECONDS = 20.0


def choose_port(job: int, start: int, free: Callable[[int], bool]) -> int:
    """A port on the first node: other jobs there have other ids, and one that a stranger holds is passed over.

    Raises UserError if none is free.
    """
    first = (job * 10 + start) % len(PORTS)
    for offset in range(len(PORTS)):
        port = PORTS[(first + offset) % len(PORTS)]
        if free(port):
            return port
    raise UserError(f"no port from {PORTS.start} to {PORTS.stop - 1} is free on this node",
                    rule="the ranks meet at a port of the first node", fix="look who holds them: ss -ltn")  # fmt: skip


def port_is_free(port: int) -> bool:
    """Whether nobody listens on it here, at any address."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store does: TIME_WAIT is no user
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # no IPv6 here
                    continue
                return False
    return True


def addresses(named: Mapping[str, str], given: Sequence[str], own: str) -> dict[str, str]:
    """Of the nodes, in Slurm's order: those that the user gives, else Slurm's. Raises UserError."""
    if not given:
        return reachable(named, own)
    if len(given) != len(named):
        raise UserError(
            f"DGPT_NODE_ADDRESSES names {len(given)} addresses for {len(named)} nodes: {' '.join(named)}",
            rule="one address for each node of the job, in Slurm's order", fix="correct it, or unset it",
        )  # fmt: skip
    return dict(zip(named, given, strict=True))


def reachable(named: Mapping[str, str], own: str) -> dict[str, str]:
    """Addresses at which the nodes reach each other, from Slurm's address or name of each; `own` is this node.

    A node's own name often resolves to its loopback: the way to another node says at which address this one is seen.
    Raises UserError if a name does not resolve.
    """
    found = {node: resolve(node, address) for node, address in named.items()}
    others = [address for node, address in found.items() if node != own]
    if own in found and others:
        found[own] = seen_from(others[0]) or found[own]
    loopback = [node for node, address in found.items() if ip_address(address).is_loopback]
    if loopback and len(loopback) < len(found):
        raise UserError(
            f"the address of node {loopback[0]} is {found[loopback[0]]}, its loopback",
            rule="nodes reach each other at an address of the network",
            fix="ask your administrators for NodeAddr in slurm.conf, or name the addresses of all nodes, in order: "
            "export DGPT_NODE_ADDRESSES='10.0.0.1 10.0.0.2'",
        )
    return found


def resolve(node: str, address: str) -> str:
    """IPv4 if there is one. Raises UserError."""
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f"the address '{address}' of node {node} cannot be resolved: {error.strerror}",
            rule="the ranks meet at an address of the first node",
            fix="ask your administrators, or export DGPT_NODE_ADDRESSES with the address of each node, in their order",
        ) from None
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def seen_from(address: str) -> str | None:
    """This node's address on the way to another one; no packet is sent."""
    family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def variables(job: Job, addresses: Sequence[str], port: int, start: int, logs: Path) -> dict[str, str]:
    """The environment of all nodes for launch/torchrun.sh; slurm/node.sh adds what differs between them."""
    settings = {
        "NNODES": str(len(addresses)),
        "MASTER_ADDR": addresses[0],
        "MASTER_PORT": str(port),
        "RDZV_ID": f"dgpt-{job.id}-{job.restart}-{start}",
        "DGPT_NODE_ADDRESSES": " ".join(addresses),
        "DGPT_LOGS": str(logs),
        "DGPT_TORCHRUN": str(script("launch/torchrun.sh")),
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": "[rank ${rank}] ",
        "PYTHONUNBUFFERED": "1",  # the workers write to a pipe, and a killed one shall leave its last words
    }
    if job.processes_per_node:
        settings["NPROC_PER_NODE"] = str(job.processes_per_node)
        settings["OMP_NUM_THREADS"] = str(max(1, job.cpus_per_task // job.processes_per_node))
    return settings


def srun(job: Job, nodes: int, timeout_seconds: int, arguments: Sequence[str]) -> list[str]:
    """The step that runs `dgpt *arguments` on all nodes, one task each.

    --kill-on-bad-exit ends all nodes when one fails. --wait ends them when one has been done for longer than any
    collective may take: nodes that cannot reach each other leave srun without a word of their end. srun takes
    --cpus-per-task from the job no longer since Slurm 22.05. What sbatch was told of --export holds for srun, too,
    which would drop the variables of the launcher.
    """
    options = [
        f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={job.cpus_per_task}",
        "--kill-on-bad-exit=1", f"--wait={timeout_seconds + WAIT_MARGIN_SECONDS}", "--input=none", "--export=ALL",
    ]  # fmt: skip
    task = ["bash", str(script("slurm/node.sh")), "-m", "dgpt.cli", *arguments]
    return ["srun", *options, *in_container(job.container, task)]


def in_container(image: str, task: list[str]) -> list[str]:
    """The task in a container: an Apptainer image file (.sif), or any other by pyxis, NVIDIA's plugin for srun."""
    if image.endswith(".sif"):
        return ["apptainer", "exec", "--nv", image, *task]
    return [f"--container-image={image}", "--container-mount-home", *task] if image else task


def nodes_answer(job: Job, nodes: int, until: float) -> bool:
    """Whether each gives a sign of life. While slurmctld is away, up to a Unix time, that says nothing of the nodes."""
    while True:
        with suppress(SlurmError):
            client.call(*probe(nodes), seconds=PROBE_SECONDS)
            return True
        if client.known(job.id) or time.time() >= until:
            return False
        time.sleep(client.RETRY_SECONDS)


def probe(nodes: int) -> list[str]:
    """A step that asks every node for a sign of life, once the step before has left it."""
    return ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1",
            "--input=none", "--export=ALL", "true"]  # fmt: skip
