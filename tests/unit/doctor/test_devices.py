"""The product that every device computes, and what nvidia-smi says."""

from dataclasses import asdict

import pytest
import torch

from dgpt.doctor import devices
from dgpt.doctor.devices import checksum, driver_version, examine, expected, matrices, troubles
from dgpt.doctor.meeting import in_processes

HEALTHY = "0, 550.54.15, 0, No, No, No, Not Active, Not Active\n"
REPORT = HEALTHY + (
    "1, 550.54.15, 3, No, Yes, No, Not Active, Not Active\n"
    "2, 550.54.15, [N/A], Yes, No, [N/A], Active, Not Active\n"
    "a line of another kind\n"
)


def test_the_cpu_knows_the_checksum_without_the_product() -> None:
    a, b, u, v = matrices(64)
    assert expected(64) == int(u @ (a @ b) @ v) == checksum(a.float() @ b.float(), u, v)


def test_one_wrong_element_changes_it() -> None:
    a, b, u, v = matrices(32)
    product = (a @ b).float()
    for row, column in ((0, 0), (31, 7)):
        wrong = product.clone()
        wrong[row, column] += 1
        assert checksum(wrong, u, v) != expected(32)


def test_sums_stay_exact_in_fp32_and_tf32_and_in_64_bits() -> None:
    size = devices.SIZE["cuda"]
    assert 4 * 4 * size < 2**24
    assert 4 <= 2**10, "an operand has at most the 10 bits of TF32"
    assert 4 * 4 * size * 1023**2 * size**2 < 2**63


def test_the_cpu_of_this_machine_computes_right() -> None:
    found = examine(-1)
    assert found.checksum == found.expected == expected(devices.SIZE["cpu"])
    assert found.tflops > 0


def test_a_forked_process_computes_where_its_parent_has_used_threads() -> None:
    x = torch.ones(1000, 1000)
    (x * x).sum(0)  # by OpenMP, in all cores
    [(answer, error)] = in_processes(lambda index: asdict(examine(index)), [-1], 20.0)
    assert not error
    assert answer["checksum"] == expected(devices.SIZE["cpu"])


def test_what_nvidia_smi_says_of_each_gpu() -> None:
    assert driver_version(REPORT) == "550.54.15"
    assert list(troubles(REPORT)) == [1, 2]
    assert "3 uncorrected memory errors" in troubles(REPORT)[1]
    assert "wait for a reset" in troubles(REPORT)[1]
    assert "could not be remapped" in troubles(REPORT)[2]
    assert "too hot" in troubles(REPORT)[2]
    assert troubles(HEALTHY) == troubles("") == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_gpu_computes_what_the_cpu_expects() -> None:
    for index in range(torch.cuda.device_count()):
        found = examine(index)
        assert found.checksum == found.expected == expected(devices.SIZE["cuda"])
        assert found.tflops > 1
    assert driver_version(devices.driver_report())
