"""Does a device compute right? Each multiplies the same matrices of small integers; their product is exact.

The CPU knows the checksum of the product without computing it: u'(AB)v = (u'A)(Bv), in integers (Freivalds, 1977). One
wrong element of a product changes it. Memory errors that the driver has counted are asked of nvidia-smi.
"""

import shutil
import subprocess
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from dgpt.doctor.reading import Device

SIZE = {"cuda": 4096, "cpu": 256}  # rows and columns
PRODUCTS = {"cuda": 10, "cpu": 2}
SMI_SECONDS = 10.0
QUERY = ("index", "driver_version", "ecc.errors.uncorrected.volatile.total", "remapped_rows.failure",
         "remapped_rows.pending", "retired_pages.pending", "clocks_throttle_reasons.hw_thermal_slowdown",
         "clocks_throttle_reasons.hw_power_brake_slowdown")  # fmt: skip


def matrices(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(A, B, u, v) in int64, the same everywhere: A, B (size, size) from -4 to 4; u, v (size,) from 1 to 1023."""
    generator = torch.Generator().manual_seed(20260101)
    a, b = (torch.randint(-4, 5, (size, size), generator=generator) for _ in range(2))
    u, v = (torch.randint(1, 1024, (size,), generator=generator) for _ in range(2))
    return a, b, u, v


def expected(size: int) -> int:
    """u'(AB)v in integers."""
    a, b, u, v = matrices(size)
    return int(((u[:, None] * a).sum(0) * (b * v).sum(1)).sum())  # (size,) * (size,)


def checksum(product: Tensor, u: Tensor, v: Tensor) -> int:
    """u'Cv of a product C (size, size) in floating point, whose elements are integers below 2^24."""
    return int((product.to(torch.int64) * u[:, None] * v).sum())


def examine(index: int) -> Device:
    """Multiply on the GPU `index`, or on the CPU for -1."""
    device = torch.device("cpu") if index < 0 else torch.device("cuda", index)
    name = "cpu" if index < 0 else torch.cuda.get_device_name(device)
    size = SIZE[device.type]
    a, b, u, v = (tensor.to(device) for tensor in matrices(size))
    a, b = a.float(), b.float()
    torch.set_float32_matmul_precision("high")  # through the tensor cores of a GPU; small integers are exact in TF32
    found, want, begin = set[int](), expected(size), 0.0
    for number in range(PRODUCTS[device.type]):
        begin = time.perf_counter() if number == 1 else begin  # the first one loads kernels
        found.add(checksum(a @ b, u, v))  # (size, size) @ (size, size)
    seconds = (time.perf_counter() - begin) / (PRODUCTS[device.type] - 1)
    wrong = found - {want}
    return Device(index, name, wrong.pop() if wrong else want, want, round(2 * size**3 / seconds / 1e12, 3))


def driver_report() -> str:
    """What nvidia-smi says of all GPUs of this node; empty without it, or if it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


def driver_version(report: str) -> str:
    return next((row["driver_version"] for row in _rows(report)), "")


def troubles(report: str) -> dict[int, str]:
    """Index of a GPU, as nvidia-smi counts -> what is wrong with it."""
    return {int(row["index"]): text for row in _rows(report) if (text := _trouble(row))}


def _rows(report: str) -> list[dict[str, str]]:
    rows = [[cell.strip() for cell in line.split(",")] for line in report.splitlines()]
    return [dict(zip(QUERY, row, strict=True)) for row in rows if len(row) == len(QUERY)]


def _trouble(row: Mapping[str, str]) -> str:
    count = row["ecc.errors.uncorrected.volatile.total"]
    found = [f"{count} uncorrected memory errors since the driver was loaded"] * (count.isdecimal() and int(count) > 0)
    words = {"remapped_rows.failure": "a row of its memory could not be remapped (Xid 64)",
             "remapped_rows.pending": "rows of its memory wait for a reset to be remapped (Xid 63)",
             "retired_pages.pending": "pages of its memory wait for a reset to be retired (Xid 63)",
             "clocks_throttle_reasons.hw_thermal_slowdown": "it is too hot and runs slower",
             "clocks_throttle_reasons.hw_power_brake_slowdown": "its power supply holds it back"}  # fmt: skip
    found += [text for name, text in words.items() if row[name] in ("1", "Yes", "Active")]
    return "; ".join(found)
