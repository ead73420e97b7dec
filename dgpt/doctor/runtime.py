"""Where this process of the doctor runs: from Slurm, from the variables of launch/torchrun.sh, or alone."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]

from dgpt import runtime
from dgpt.errors import UserError
from dgpt.watch.runtime import nodes


@dataclass(frozen=True)
class Place:
    """One node among those that are examined."""

    node: str
    index: int  # from 0; the first one hosts the store
    nodes: int
    address: str  # of the first node
    port: int
    processes: int  # ranks that shall run on this node; 0: one for each GPU
    names: tuple[str, ...]  # of all nodes

    @property
    def is_first(self) -> bool:
        return self.index == 0


def this_place() -> Place:
    """Raises UserError if there are several nodes and they cannot meet."""
    of = os.environ.get
    count = nodes()
    addresses = of("DGPT_NODE_ADDRESSES", "").split()
    index = int(of("NODE_RANK") or (of("SLURM_NODEID", "0") if addresses else "0"))
    address = of("MASTER_ADDR", "")
    if count > 1 and not address:
        raise UserError("NNODES > 1 without MASTER_ADDR", rule="the nodes meet at an address of the first",
                        fix="set MASTER_ADDR to node 0, and NODE_RANK from 0 to NNODES - 1")  # fmt: skip
    own = addresses[index] if index < len(addresses) else of("NODE_ADDR", "")
    _use_interface(own)
    names = of("DGPT_NODES", "").split() or [runtime.node() if i == index else f"node {i}" for i in range(count)]
    port = int(of("MASTER_PORT", "29400" if count > 1 else "0"))
    return Place(
        runtime.node(), index, count, address or "127.0.0.1", port, int(of("NPROC_PER_NODE", "0")), tuple(names)
    )


def visible(count: int) -> list[int]:
    """How nvidia-smi counts the GPUs that CUDA counts from 0, where Slurm has numbered them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [int(index) for index in given][:count] if all(map(str.isdecimal, given)) else list(range(count))


def in_allocation() -> bool:
    """Whether this is the shell or batch script of a job of several nodes, and not already one task of a step."""
    several = int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) > 1
    return several and not {"NNODES", "SLURM_STEP_ID"} & set(os.environ)


def _use_interface(address: str) -> None:
    """gloo's, of the address at which the other nodes see this one; else it takes what the host name resolves to."""
    interfaces: Mapping[str, list[psutil._common.snicaddr]] = psutil.net_if_addrs()
    for name, addresses in interfaces.items():
        if address in {entry.address for entry in addresses}:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
