"""The commands as a person types them: real processes, two ranks under torchrun, signals, exit codes."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dgpt.checkpoint import list_checkpoints
from dgpt.cli import main
from dgpt.outcome import DONE, FAILED, MISTAKE, STOPPED
from dgpt.train.rows import read_rows

STEPS = 120
DEADLINE_SECONDS = 120
RUN = f"""
run_dir = "whole"
model = {{ n_layer = 1, n_head = 2, n_embd = 32, seq_len = 32, dropout = 0.1 }}
tokenizer = {{ vocab_size = 300 }}
optimizer = {{ lr = 1e-2 }}
schedule = {{ warmup_steps = 10, min_lr = 1e-4 }}
training = {{ steps = {STEPS}, global_batch_size = 8, micro_batch_size = 2, eval_every_steps = 0 }}
checkpoint = {{ every_steps = 50, keep_last = 9 }}
logging = {{ every_steps = 1 }}

[data]
path = "data"
val_fraction = 0.1
num_workers = 1
sources = [{{ path = "texts" }}]
"""


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`dgpt ARGUMENTS` in `folder`; what is still there at the end is killed, and its workers die with it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dgpt.cli", *arguments], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert "Traceback" not in errors
    return process.returncode, output, errors


def dgpt(folder: Path, *arguments: str) -> tuple[int, str, str]:
    with started(folder, *arguments) as process:
        return end(process)


def is_whole(run_dir: Path) -> bool:
    return main(["checkpoint", "verify", str(run_dir)]) == DONE


def losses(run_dir: Path) -> list[tuple[int, float]]:
    path = run_dir / "metrics.jsonl"
    rows = read_rows(path) if path.exists() else ()
    return [(int(row["step"] or 0), float(row["loss/train"] or 0)) for row in rows]


def wait_for_step(run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not any(done >= step for done, _ in losses(run_dir)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run.toml, the data that `dgpt prepare` made of a few files, and the run `whole` that nothing stopped."""
    folder, rng = tmp_path_factory.mktemp("commands"), random.Random(1)
    (folder / "run.toml").write_text(RUN)
    (folder / "texts").mkdir()
    for number in range(60):
        words = ("".join(rng.choices("abcd", k=rng.randint(2, 5))) + rng.choice(" \n") for _ in range(200))
        (folder / "texts" / f"{number}.txt").write_text("".join(words))
    code, output, errors = dgpt(folder, "prepare", "run.toml")
    assert (code, errors) == (DONE, "")
    assert "300" in output
    code, output, errors = dgpt(folder, "pretrain", "run.toml", "--nproc", "2")
    assert (code, errors) == (DONE, "")
    assert "starting fresh at step 0: no checkpoint in whole\n" in output
    assert f"finished: step {STEPS}, whole\n" in output
    return folder


def test_the_loss_falls_and_every_step_is_there(folder: Path) -> None:
    curve = losses(folder / "whole")
    assert [step for step, _ in curve] == [*range(1, STEPS + 1)]
    assert curve[-1][1] < 0.7 * curve[0][1]


def test_a_run_stopped_by_signals_is_the_run_that_was_not(folder: Path) -> None:
    command = ("pretrain", "run.toml", "--nproc", "2", "run_dir=cut")
    stopped_at = 0
    for number in (signal.SIGTERM, signal.SIGUSR1):
        with started(folder, *command) as process:
            wait_for_step(folder / "cut", stopped_at + 5)
            process.send_signal(number)
            code, output, errors = end(process)
        assert (code, errors) == (STOPPED, "")
        before, (stopped_at, _) = stopped_at, losses(folder / "cut")[-1]
        assert before < stopped_at < STEPS
        assert f"stopped by {number.name} at step {stopped_at}, saved; the same command goes on from here\n" in output
        assert list_checkpoints(folder / "cut")[-1].step == stopped_at
        assert (f"resuming at step {before} " in output) == (before > 0)
    code, output, errors = dgpt(folder, *command)
    assert (code, errors) == (DONE, "")
    assert f"resuming at step {stopped_at} " in output
    assert losses(folder / "cut") == losses(folder / "whole")


def test_a_finished_run_started_again_says_so(folder: Path) -> None:
    before = losses(folder / "whole")
    stray = list_checkpoints(folder / "whole")[-1].folder / "notes.txt"
    stray.touch()  # no damage, but `verify` names it
    code, output, errors = dgpt(folder, "pretrain", "run.toml", "--nproc", "2")
    stray.unlink()
    assert (code, errors) == (DONE, "")
    assert output == (f"finished before: whole is at step {STEPS} of training.steps = {STEPS}; "
                      "raise training.steps to go on\n")  # fmt: skip
    assert losses(folder / "whole") == before


def test_generate_continues_prompts(folder: Path) -> None:
    code, output, errors = dgpt(folder, "generate", "whole", "ab", "--max-new-tokens", "12", "ba", "--samples", "2")
    assert (code, errors) == (DONE, "")
    texts = output.split("-" * 40 + "\n")
    assert [text[:2] for text in texts] == ["ab", "ab", "ba", "ba"]
    assert len(set(texts)) == 4
    written = "".join(texts)
    assert sum(written.count(sign) for sign in "abcd \n") > 0.9 * len(written), "learned from texts of these signs"


def test_prompts_from_a_file_follow_those_of_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "prompts").write_text("one\n日本 two\n", encoding="utf-8")
    options = ["zero", "--prompts-file", str(folder / "prompts"), "--max-new-tokens", "2", "--temperature", "0"]
    assert main(["generate", str(folder / "whole" / "checkpoints" / f"step_{STEPS:08d}"), *options]) == DONE
    texts = capsys.readouterr().out.split("-" * 40 + "\n")
    assert [text.startswith(prompt) for text, prompt in zip(texts, ("zero", "one", "日本 two"), strict=True)] == [
        True
    ] * 3


def test_evaluate_starts_processes_and_prints_once(folder: Path) -> None:
    command = ("evaluate", "whole", "--limit", "9", "--json")
    (code, said, _), (_, alone, _) = dgpt(folder, *command, "--nproc", "2"), dgpt(folder, *command)
    assert code == DONE
    two, one = json.loads(said), json.loads(alone)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert (two["tokens"], two["step"]) == (one["tokens"], STEPS)


def test_a_checkpoint_can_be_named_from_where_it_lies(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "whole" / "checkpoints" / "step_00000050")
    for name in (".", "../step_00000050"):
        assert main(["generate", name, "ab", "--max-new-tokens", "1"]) == DONE
        assert capsys.readouterr().out.startswith("ab")


def test_checkpoint_lists_verifies_and_shows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = folder / "whole"
    assert main(["checkpoint", "list", str(run_dir)]) == DONE
    listed = capsys.readouterr().out
    assert [step for step in ("50", "100", "120") if f" {step} " in listed] == ["50", "100", "120"]
    assert listed.count("yes") == 3
    newest = run_dir / "checkpoints" / f"step_{STEPS:08d}"
    for path, folders in ((run_dir, sorted(newest.parent.iterdir())), (newest, [newest])):
        assert main(["checkpoint", "verify", str(path)]) == DONE
        assert capsys.readouterr().out == "".join(f"{folder}: whole, every hash matches\n" for folder in folders)
        assert main(["checkpoint", "show", str(path)]) == DONE
        assert f"\nstep {STEPS}, {STEPS * 8 * 32:,} tokens, {STEPS * 8} samples, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.path=nowhere", "dgpt: data.path = 'nowhere' holds no prepared data\n"),
        ("parallel.tp=4", "dgpt: parallel.tp = 4 does not divide the world: world_size 2 = dp x tp 4\n"),
    ],
)
def test_two_ranks_print_a_mistake_once(folder: Path, override: str, message: str) -> None:
    widths = ("model.n_head=4", "run_dir=none")
    code, output, errors = dgpt(folder, "pretrain", "run.toml", "--nproc", "2", override, *widths)
    assert (code, output) == (MISTAKE, "")
    assert errors.startswith(message)
    assert errors.count("\n") == 3
    assert not (folder / "none").exists()


def test_a_second_job_on_a_run_folder_is_refused_and_the_first_is_unharmed(folder: Path) -> None:
    command = ("pretrain", "run.toml", "--nproc", "2", "run_dir=shared", "training.steps=100000")
    with started(folder, *command) as first:
        wait_for_step(folder / "shared", 3)
        code, output, errors = dgpt(folder, *command)
        assert (code, output) == (MISTAKE, "")
        assert "run_dir = 'shared' is in use by process " in errors
        assert "fix:  stop that job or wait for its end, or give this run another run_dir" in errors
        first.send_signal(signal.SIGTERM)
        code, output, _ = end(first)
    assert code == STOPPED
    assert f"stopped by SIGTERM at step {list_checkpoints(folder / 'shared')[-1].step}, saved" in output
    assert is_whole(folder / "shared")


def test_a_stopped_rank_is_named_within_ten_seconds_and_the_next_start_goes_on(folder: Path) -> None:
    command = ("pretrain", "run.toml", "--nproc", "2", "run_dir=hung", "checkpoint.every_steps=10")
    with started(folder, *command, "parallel.hang_seconds=4") as process:
        wait_for_step(folder / "hung", 15)
        (rank,) = [child for child in psutil.Process(process.pid).children() if child.name() == "dgpt rank 1"]
        rank.send_signal(signal.SIGSTOP)
        fault = time.monotonic()
        code, _, errors = end(process)
    assert time.monotonic() - fault < 10
    last = errors.splitlines()[-1]
    assert (code, last.startswith(f"dgpt: hang: rank 1 on {socket.gethostname()} (process {rank.pid}) ")) == (
        FAILED,
        True,
    )
    assert last.endswith("its process is stopped (SIGSTOP); 1 rank waits for it")
    code, output, errors = dgpt(folder, *command)
    assert (code, errors, "resuming at step " in output) == (DONE, "", True)
    assert losses(folder / "hung") == losses(folder / "whole")
    assert not (folder / "hung" / "heartbeats").exists()


def test_a_job_that_wakes_after_its_folder_was_taken_over_commits_nothing(folder: Path) -> None:
    command = ("pretrain", "run.toml", "--nproc", "1", "run_dir=asleep", "checkpoint.every_steps=5",
               "resume.stale_lock_seconds=2")  # fmt: skip
    with started(folder, *command) as first:
        wait_for_step(folder / "asleep", 20)
        first.send_signal(signal.SIGSTOP)
        time.sleep(0.5)  # its last sign of life is no longer fresh
        code, output, _ = dgpt(folder, *command)
        assert (code, f"finished: step {STEPS}, asleep" in output) == (DONE, True)
        before = {path: path.stat().st_mtime_ns for path in (folder / "asleep" / "checkpoints").rglob("*")}
        first.send_signal(signal.SIGCONT)
        code, output, errors = end(first)
        assert code == FAILED
        assert "another start of this run has taken over the run folder" in errors
    after = {path: path.stat().st_mtime_ns for path in (folder / "asleep" / "checkpoints").rglob("*")}
    assert after == before
    assert is_whole(folder / "asleep")
