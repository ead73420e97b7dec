"""What is wrong with nodes, from readings that a test gives them."""

from dataclasses import replace
from typing import Any

import pytest

from dgpt.doctor.meeting import guilty, pairings, silent
from dgpt.doctor.reading import Device, Reading
from dgpt.doctor.rules import GIB, Problem, judge
from dgpt.doctor.runtime import Place

GPU = Device(0, "H100", 7, 7, 400.0)
VERSIONS = {"torch": "2.13", "python": "3", "driver": "550"}
HEALTHY = Reading(
    node="n0", versions=VERSIONS, config="abc", folder="/runs",
    folder_error="", folder_free=500 * GIB, temporary_free=50 * GIB, shared_memory=64 * GIB, open_files=65536,
    locked_memory=-1, cores=64, processes=2, infiniband=True, devices=(GPU, replace(GPU, index=1)), clock=1000.0,
)  # fmt: skip


def problems(nodes: int = 4, **of_n2: Any) -> list[Problem]:
    """Of healthy nodes n0, n1, ..., and n2, which is different."""
    readings = [replace(HEALTHY, node=f"n{number}") for number in range(nodes)]
    readings[2 % nodes] = replace(readings[2 % nodes], **of_n2)
    return judge(readings)


def test_healthy_nodes_have_no_problem() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("different", "said", "fatal"),
    [
        ({"versions": {**VERSIONS, "torch": "2.12"}}, "versions of torch differ: 2.13 on n0, n1, n3; 2.12 on n2", 1),
        ({"versions": {**VERSIONS, "driver": "535"}}, "versions of driver differ", 0),
        ({"versions": {"python": "3", "driver": "550"}}, "versions of torch differ: 2.13 on n0, n1, n3; none on n2", 1),
        ({"config": "abd"}, "the settings differ between nodes: n2 read another run.toml", 1),
        ({"folder_error": "Read-only file system"}, "'/runs' cannot be written on n2: Read-only file system", 1),
        ({"sees_token": False}, "'/runs' is not shared: what n0 wrote cannot be read on n2", 1),
        ({"devices": (GPU, replace(GPU, index=1, checksum=8))}, "GPU 1 (H100) of n2 computes wrong", 1),
        ({"devices": (GPU, Device(1, "H100", error="out of memory"))}, "GPU 1 (H100) of n2 cannot compute: out of", 1),
        ({"devices": (GPU,)}, "n2 shows 1 GPUs for 2 processes", 1),
        ({"devices": (replace(GPU, trouble="a row of its memory could not be remapped"), GPU)}, "of n2: a row of", 1),
        ({"devices": (replace(GPU, trouble="it is too hot and runs slower"), GPU)}, "of n2: it is too hot", 0),
        ({"devices": (replace(GPU, expected=9, checksum=9), GPU)}, "the CPUs of nodes disagree", 1),
        ({"devices": (replace(GPU, tflops=200.0), GPU)}, "GPU 0 (H100) of n2 is slow: 200 TFLOP/s, and 400", 0),
    ],
)  # fmt: skip
def test_a_node_that_differs_is_named(different: dict[str, Any], said: str, fatal: int) -> None:
    (problem,) = problems(**different)
    assert said in problem.what
    assert problem.fix
    assert problem.fatal == bool(fatal)
    assert problem.suspects == ("n2",) or "driver" in said


@pytest.mark.parametrize(
    ("different", "said"),
    [
        ({"folder_free": 5}, "5 bytes free in '/runs' on n2"),
        ({"temporary_free": 5}, "5 bytes free in /tmp on n2"),
        ({"shared_memory": 64 * 2**20}, "67,108,864 bytes in /dev/shm on n2, and 1,073,741,824 are wanted"),
        ({"open_files": 1024}, "1,024 open files (ulimit -n) on n2, and 1,032 are wanted"),
        ({"locked_memory": 65536}, "65,536 bytes of locked memory (ulimit -l) on n2"),
        ({"cores": 1}, "fewer cores than processes on n2: 1 for 2"),
        ({"clock": 1007.5}, "the clock of n2 is +7.5 s off those of the others"),
    ],
)
def test_what_costs_speed_or_will_matter_later_is_a_warning(different: dict[str, Any], said: str) -> None:
    (problem,) = problems(**different)
    assert said in problem.what
    assert not problem.fatal


def test_memory_that_cannot_be_locked_matters_to_infiniband_alone() -> None:
    assert problems(locked_memory=65536, infiniband=False) == []


def test_of_two_nodes_that_differ_neither_is_to_blame() -> None:
    assert [problem.suspects for problem in problems(2, config="x")] == [()]


def test_a_folder_that_nobody_can_write_is_a_mistake_of_the_user() -> None:
    (problem,) = judge([replace(HEALTHY, node=f"n{number}", folder_error="Permission denied") for number in range(3)])
    assert (problem.suspects, problem.fix) == ((), "set run_dir to a folder of yours")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 125])
def test_every_node_meets_others_in_few_rounds(count: int) -> None:
    rounds = pairings(range(count))
    assert len(rounds) <= 5
    for pairs in rounds:
        met = [node for pair in pairs for node in pair]
        assert len(set(met)) == len(met)
    met_by = {node: {pair for pairs in rounds for pair in pairs if node in pair} for node in range(count)}
    assert all(len(pairs) >= min(2, count - 1) for pairs in met_by.values())


@pytest.mark.parametrize("bad", [0, 3, 6])
def test_the_node_that_is_in_all_pairs_that_fail_is_named(bad: int) -> None:
    failed = [pair for pairs in pairings(range(7)) for pair in pairs if bad in pair]
    assert guilty(failed) == ([bad], [])


def test_a_single_pair_that_fails_is_a_link() -> None:
    assert guilty([(2, 3)]) == ([], [(2, 3)])
    assert guilty([(1, 2), (2, 3), (4, 5)]) == ([2], [(4, 5)])
    assert guilty([]) == ([], [])


def test_nodes_without_a_word_are_named() -> None:
    place = Place("n0", 0, 4, "10.0.0.1", 20001, 2, ("n0", "n1", "n2", "n3"))
    assert silent(place, [0, 1, 2, 3], place.names, 60) is None
    one = silent(place, [0, 1, 3], place.names, 60)
    assert one is not None
    assert one.suspects == ("n2",)
    assert "n2 gave no word within 60 s" in one.what
    most = silent(place, [0], place.names, 60)
    assert most is not None
    assert most.suspects == ("n0",), "the others do not reach it"
