"""The fault matrix in small: each fault ends in a checkpoint that is right to the last bit, or in a refusal.

How each single case must end is said and judged in benchmarks/faults; here, that they were run and how they ended.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FLIPS = 60  # of `--small`
KILL = "kill -9 while saving step 2 again, pruning step 1"
OLDER, ALONE = "damage; an older checkpoint is whole", "damage; there is no other checkpoint"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """In a process of its own, which forks before it has any thread."""
    file = tmp_path_factory.mktemp("faults") / "rows.json"
    command = [sys.executable, "-m", "benchmarks.checkpoint_faults", "--small", "--json", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


def skip_without_mount(rows):
    for row in rows:
        if row["ends"] == "not run":
            pytest.skip(row["text"])


def ends(rows, *groups):
    return Counter((row["ends"], row["step"]) for row in rows if row["group"] in groups)


def test_kill_at_any_point_of_a_save_leaves_the_old_checkpoint_or_the_new_one(rows):
    killed = ends(rows, KILL)
    assert set(killed) == {("continues", 2)}
    assert killed.total() >= 30


def test_full_disk_costs_no_checkpoint_and_no_run_until_the_third_failure_in_a_row(rows):
    skip_without_mount(rows)
    assert ends(rows, "full disk") == {("continues", 3): 8, ("continues", 1): 1, ("refuses", None): 1}


def test_folder_that_cannot_be_written_to_is_refused_or_read(rows):
    skip_without_mount(row for row in rows if row["group"] == "read-only folder")
    assert ends(rows, "read-only folder") == {("continues", 1): 1, ("refuses", None): 2}


def test_disk_that_gives_back_other_bytes_costs_one_save(rows):
    assert ends(rows, "disk that gives back other bytes") == {("continues", 3): 4}


def test_damaged_checkpoint_is_passed_over_for_an_older_one_or_refused(rows):
    older, alone = ends(rows, OLDER), ends(rows, ALONE)
    assert set(older) == {("continues", 1), ("continues", 2), ("refuses", None)}
    assert set(alone) == {("continues", 2), ("refuses", None)}
    assert older["continues", 2] == alone["continues", 2] == 2  # there is a file more: never opened
    assert older["refuses", None] == 4  # a whole one, of another model or other data
    assert older.total() == alone.total() >= FLIPS + 60


def test_no_flipped_bit_is_silent(rows):
    flipped = Counter((row["group"], row["ends"]) for row in rows if row["name"].startswith("one bit flipped"))
    assert flipped == {(OLDER, "continues"): FLIPS, (ALONE, "refuses"): FLIPS}
