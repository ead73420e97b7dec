"""`dgpt checkpoint`: what its actions print, delete and return."""

import os
import shutil
from pathlib import Path

import pytest

from dgpt.checkpoint import find_latest
from dgpt.checkpoint.find import NO_NAME
from dgpt.checkpoint.report import damage_of
from dgpt.cli import main
from dgpt.lease import Lease
from dgpt.outcome import DONE, MISTAKE

ACTIONS = ("list", "show", "verify", "diff", "prune", "average")


@pytest.fixture
def run(job, topology, state):
    """A run folder with whole checkpoints of steps 1 to 6."""
    one = job(topology(1, 1, 1), keep_last=9)
    for step in range(1, 7):
        one.save(step, state(seed=step))
    return one.run_dir


def folder_of(run, step):
    return run / "checkpoints" / f"step_{step:08d}"


def steps(run):
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").iterdir())


def cut(run, step):
    """Damage a checkpoint; returns the size that its file had."""
    path = folder_of(run, step) / "rank_00000.safetensors"
    size = path.stat().st_size
    os.truncate(path, 10)
    return size


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_has_help_of_its_own(action, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["checkpoint", action, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: dgpt checkpoint {action} [-h]")


def test_list_shows_sizes_that_a_person_reads(run, capsys):
    size = cut(run, 3)
    assert main(["checkpoint", "list", str(run)]) == DONE
    lines = [line for line in capsys.readouterr().out.splitlines() if "5,000" in line]
    assert len(lines) == 6
    assert all(f" {size / 1024:.1f} KiB " in line and "2.5000" in line for line in lines)
    assert [("yes, by size" in line) for line in lines] == [True, True, False, True, True, True]
    assert f"rank_00000.safetensors: expected {size} bytes, found 10" in lines[2]


def test_verify_of_a_run_reads_every_checkpoint(run, capsys):
    assert main(["checkpoint", "verify", str(run)]) == DONE
    assert capsys.readouterr().out == "".join(
        f"{folder_of(run, step)}: whole, every hash matches\n" for step in range(1, 7)
    )
    size = cut(run, 2)
    (folder_of(run, 4) / "manifest.json").unlink()
    (folder_of(run, 5) / "notes").touch()
    assert main(["checkpoint", "verify", str(run)]) == MISTAKE
    assert capsys.readouterr().out.splitlines() == [
        f"{folder_of(run, 1)}: whole, every hash matches",
        f"{folder_of(run, 2)}/rank_00000.safetensors: expected {size} bytes, found 10",
        "  fix: use another checkpoint, or restore the file from a copy",
        f"{folder_of(run, 3)}: whole, every hash matches",
        f"{folder_of(run, 4)}/manifest.json: No such file or directory",
        "  fix: use another checkpoint, or restore the file from a copy",
        f"{folder_of(run, 5)}/notes: not part of this checkpoint",
        "  fix: move it elsewhere; dgpt never opens it",
        f"{folder_of(run, 6)}: whole, every hash matches",
    ]


def test_verify_of_one_checkpoint_reads_that_one_damaged_or_not(run, capsys):
    (folder_of(run, 4) / "manifest.json").unlink()
    assert main(["checkpoint", "verify", str(folder_of(run, 5))]) == DONE
    assert capsys.readouterr().out == f"{folder_of(run, 5)}: whole, every hash matches\n"
    assert main(["checkpoint", "verify", str(folder_of(run, 4))]) == MISTAKE
    assert "manifest.json: No such file or directory\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "kept"),
    [(["--keep-last", "2"], [5, 6]), (["--keep-last", "1", "--keep-every", "3"], [3, 6]),
     (["--keep-last", "9"], [1, 2, 3, 4, 5, 6])],
)  # fmt: skip
def test_prune_deletes_what_its_dry_run_said(options, kept, run, capsys):
    assert main(["checkpoint", "prune", str(run), *options, "--dry-run"]) == DONE
    said = capsys.readouterr().out.splitlines()
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert main(["checkpoint", "prune", str(run), *options]) == DONE
    done = capsys.readouterr().out.splitlines()
    assert steps(run) == kept
    assert said[:-1] == done[:-1]
    assert [line.split()[:2] for line in done[:-1]] == [
        ["keep" if step in kept else "delete", f"step_{step:08d}"] for step in range(1, 7)
    ]
    assert said[-1].startswith(f"{6 - len(kept)} of 6 checkpoints, ")
    assert (said[-1].endswith(": would go"), done[-1].endswith(": deleted")) == (True, True)


def test_prune_says_how_many_bytes_are_freed(run, capsys):
    size = sum(path.stat().st_size for step in (1, 2, 3, 4) for path in folder_of(run, step).iterdir())
    main(["checkpoint", "prune", str(run), "--keep-last", "2"])
    assert f"4 of 6 checkpoints, {size / 1024:.1f} KiB: deleted\n" in capsys.readouterr().out


def test_prune_names_damaged_ones_and_leaves_them(run, capsys):
    cut(run, 2)
    cut(run, 6)
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert steps(run) == [2, 5, 6]
    assert [line.split()[0] for line in lines[:-1]] == ["delete", "damaged", "delete", "delete", "keep", "damaged"]
    assert "rank_00000.safetensors: expected" in lines[1]


def test_prune_needs_a_run_and_keeps_at_least_one(run, tmp_path, capsys):
    assert main(["checkpoint", "prune", str(tmp_path / "none"), "--keep-last", "1"]) == MISTAKE
    assert "has no checkpoints" in capsys.readouterr().err
    for options in ([], ["--keep-last", "0"], ["--keep-last", "-1"], ["--keep-last", "two"]):
        with pytest.raises(SystemExit) as ended:
            main(["checkpoint", "prune", str(run), *options])
        assert ended.value.code == 2
    assert steps(run) == [1, 2, 3, 4, 5, 6]


def test_average_of_one_is_refused(run, tmp_path, capsys):
    assert main(["checkpoint", "average", str(run), "--output", str(tmp_path / "mean")]) == MISTAKE
    assert "average of one checkpoint" in capsys.readouterr().err


def test_a_renamed_checkpoint_is_named(run, capsys):
    folder_of(run, 6).rename(run / "checkpoints" / "step_6")
    assert main(["checkpoint", "list", str(run)]) == DONE
    assert "not one of them: step_6 is not the name of a checkpoint, which is step_" in capsys.readouterr().out
    assert find_latest(run).skipped == (f"{run}/checkpoints/step_6: {NO_NAME}",)


def test_a_folder_that_cannot_be_looked_into_is_none_of_the_run(run, monkeypatch):
    (run / "checkpoints" / "private").mkdir()
    real = Path.exists

    def exists(path):
        if path.parent.name == "private":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "exists", exists)
    assert (find_latest(run).folder, find_latest(run).skipped) == (folder_of(run, 6), ())


def test_the_folder_above_is_named(run, capsys):
    assert main(["checkpoint", "verify", str(run / "checkpoints")]) == MISTAKE
    assert capsys.readouterr().err.endswith(f"\n  fix:  give {run}\n")


def test_a_file_more_is_no_damage_where_one_is_used(run, capsys):
    (folder_of(run, 6) / "notes.txt").touch()
    assert damage_of(folder_of(run, 6)) is None
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == DONE
    assert steps(run) == [6]
    cut(run, 6)
    assert "rank_00000.safetensors: expected" in damage_of(folder_of(run, 6))


def test_show_says_whether_it_is_whole(run, capsys):
    assert main(["checkpoint", "show", str(folder_of(run, 6))]) == DONE
    assert "\nwhole, by the sizes of its files\n" in capsys.readouterr().out
    cut(run, 6)
    assert main(["checkpoint", "show", str(folder_of(run, 6))]) == DONE
    assert f"\nNOT WHOLE: {folder_of(run, 6)}/rank_00000.safetensors: expected " in capsys.readouterr().out


def test_prune_refuses_the_folder_of_a_run_that_is_going_on(run, capsys):
    with Lease.take(run):
        assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == MISTAKE
        assert f"run_dir = '{run}' is in use by process {os.getpid()}" in capsys.readouterr().err
        assert main(["checkpoint", "prune", str(run), "--keep-last", "1", "--dry-run"]) == DONE
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == DONE
    assert steps(run) == [6]


def test_prune_counts_only_what_reads_back_as_it_was_written(run, capsys):
    path = folder_of(run, 6) / "rank_00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == DONE
    assert steps(run) == [5, 6]
    assert "damaged  step_00000006" in capsys.readouterr().out


def test_prune_deletes_nothing_damaged_where_few_are_whole(run, capsys):
    for step in (1, 2, 3):
        path = folder_of(run, step) / "rank_00000.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert main(["checkpoint", "prune", str(run), "--keep-last", "5"]) == DONE
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert capsys.readouterr().out.count("damaged") == 3


def test_a_writer_that_sleeps_during_a_prune_commits_nothing_when_it_wakes(run):
    (run / "checkpoints" / "step_00000007.tmp-a9").mkdir()
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == DONE
    assert steps(run) == [6]


def test_show_tells_topology_tensors_and_settings(run, capsys):
    assert main(["checkpoint", "show", str(run)]) == DONE
    shown = capsys.readouterr().out
    for part in ("topology: 1 ranks = dp 1 x tp 1, ZeRO 1", "  wte.weight  [24, 10]", "  model.n_embd = 768"):
        assert part in shown


def test_list_names_a_folder_that_is_no_run(run, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for path in (tmp_path / "texts", folder_of(run, 1)):
        assert main(["checkpoint", "list", str(path)]) == MISTAKE
        assert f"'{path}' is no run folder" in capsys.readouterr().err
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    assert main(["checkpoint", "list", str(tmp_path / "new")]) == DONE
    assert capsys.readouterr().out == f"no checkpoints in {tmp_path / 'new'}\n"


def test_verify_of_a_run_that_goes_on_leaves_out_what_it_deletes(run, monkeypatch, capsys):
    from dgpt.checkpoint import report

    real = report.read_manifest

    def read_manifest(folder):
        manifest = real(folder)
        if folder == folder_of(run, 1):
            shutil.rmtree(folder)
        return manifest

    monkeypatch.setattr(report, "read_manifest", read_manifest)
    assert main(["checkpoint", "verify", str(run)]) == DONE
    assert capsys.readouterr().out == "".join(
        f"{folder_of(run, step)}: whole, every hash matches\n" for step in range(2, 7)
    )
