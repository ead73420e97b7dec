"""What a node says of itself: versions, space, limits and devices."""

import os
import platform
import resource
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dgpt

PACKAGES = ("torch", "deepspeed", "numpy", "safetensors", "pydantic")
SHARED_MEMORY, TEMPORARY = "/dev/shm", "/tmp"


@dataclass(frozen=True)
class Device:
    """A GPU, or the CPU of a node without any, after the product that every device computes."""

    index: int  # as CUDA counts, -1 for a CPU
    name: str
    checksum: int = 0
    expected: int = 0  # by the CPU, in integers
    tflops: float = 0.0  # of the product
    error: str = ""  # it could not compute
    trouble: str = ""  # what its driver reports: memory errors, rows that cannot be remapped

    @property
    def label(self) -> str:
        return "the CPU" if self.index < 0 else f"GPU {self.index} ({self.name})"


@dataclass(frozen=True)
class Reading:
    """One node. Bytes, counts, seconds; -1: unlimited."""

    node: str
    versions: Mapping[str, str]
    config: str  # hash of the resolved settings; empty without any
    folder: str  # that all nodes share
    folder_error: str  # why nothing can be written there; empty if it can
    folder_free: int
    temporary_free: int
    shared_memory: int
    open_files: int
    locked_memory: int
    cores: int  # that the processes of this node may use
    processes: int  # that shall run here
    infiniband: bool
    devices: tuple[Device, ...] = field(default=())
    sees_token: bool = True  # what another node wrote into the folder can be read here
    clock: float | None = None  # Unix time when all nodes were asked at once

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Reading":
        return cls(**{**values, "devices": tuple(Device(**device) for device in values["devices"])})


def read(node: str, folder: Path, config: str, processes: int, devices: tuple[Device, ...], driver: str) -> Reading:
    """Of this node."""
    return Reading(
        node=node, versions=versions(driver), config=config, folder=str(folder), folder_error=_try_to_write(folder),
        folder_free=_free(folder), temporary_free=_free(Path(TEMPORARY)), shared_memory=_size(Path(SHARED_MEMORY)),
        open_files=_limit(resource.RLIMIT_NOFILE), locked_memory=_limit(resource.RLIMIT_MEMLOCK), cores=_cores(),
        processes=processes, infiniband=Path("/sys/class/infiniband").is_dir(), devices=devices,
    )  # fmt: skip


def versions(driver: str) -> dict[str, str]:
    """Of what has to be the same on all nodes."""
    found = {"python": platform.python_version(), "dgpt": dgpt.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return {**found, "driver": driver} if driver else found


def _try_to_write(folder: Path) -> str:
    probe = folder / f".doctor-{platform.node()}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"dgpt")
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _size(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return 0


def _limit(which: int) -> int:
    soft, _ = resource.getrlimit(which)
    return -1 if soft == resource.RLIM_INFINITY else soft


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
