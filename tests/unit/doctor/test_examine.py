"""Examinations of four nodes, each a process of its own, with the faults of nodes.py: who is named."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dgpt.doctor.report import Report, line
from dgpt.doctor.show import show

FOUND = [
    ("wrong product", "the CPU of n1 computes wrong", ("n1",)),
    ("stuck device", "the CPU of n3 cannot compute: no answer within 2 s", ("n3",)),
    ("no network", "with n2 it fails in pairs of nodes too", ("n2",)),
    ("dead link", "n1 and n2 do not reach each other", ("n1", "n2")),
    ("not shared", "is not shared: what n0 wrote cannot be read on n3", ("n3",)),
    ("silent", "n1 gave no word within 10 s", ("n1",)),
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("shared")
    command = [sys.executable, str(Path(__file__).with_name("nodes.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert list(folder.iterdir()) == [], "it leaves nothing in the shared folder"
    return {name: Report.of(report) for name, report in json.loads(done.stdout).items()}


def test_healthy_nodes_are_fit(reports: dict[str, Report]) -> None:
    healthy = reports["healthy"]
    assert (healthy.problems, healthy.world) == ((), 4)
    assert [reading.node for reading in healthy.readings] == ["n0", "n1", "n2", "n3"]
    assert 0 < healthy.reduce_seconds < 60


@pytest.mark.parametrize(("scenario", "said", "suspects"), FOUND)
def test_the_bad_one_is_named(reports: dict[str, Report], scenario: str, said: str, suspects: tuple[str, ...]) -> None:
    report = reports[scenario]
    (problem,) = report.problems
    assert said in problem.what
    assert problem.suspects == report.suspects == suspects
    assert problem.fatal
    assert line(problem).startswith(f"preflight: {problem.what}; ")


def test_a_report_survives_the_way_between_processes(reports: dict[str, Report]) -> None:
    for report in reports.values():
        assert Report.of(json.loads(json.dumps(report.to_json()))) == report


def test_tables_show_every_node_and_every_problem(reports: dict[str, Report]) -> None:
    console = Console(width=300, record=True, file=io.StringIO())
    show(reports["wrong product"], console)
    text = console.export_text()
    assert all(text.count(f"n{number} ") >= 2 for number in range(4))
    assert "WRONG" in text
    assert "problem: the CPU of n1 computes wrong" in text
    assert "nothing can be trained" in text
    show(reports["healthy"], console)
    assert "4 nodes examined in" in console.export_text()
