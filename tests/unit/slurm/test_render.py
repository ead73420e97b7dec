"""The batch script of a submission: golden files, and what is refused or quoted."""

import shlex
import subprocess
from pathlib import Path

import pytest

from dgpt.errors import UserError
from dgpt.scripts import script
from dgpt.slurm.render import render

GOLDEN = Path(__file__).parent / "golden"
PRETRAIN = script("slurm/pretrain.sbatch").read_text()
CASES = {
    "pretrain": (
        PRETRAIN,
        {"job-name": "dgpt-8b", "output": "/scratch/my runs/8b/slurm/job_%j.out", "chdir": "/home/me", "nodes": "4",
         "gpus-per-node": "8", "cpus-per-task": "64", "time": "24:00:00", "partition": "gpu", "signal": "B:USR1@417",
         "constraint": "[rack1|rack2]&h100", "exclude": "n[3,5-7]", "array": "1-9%1"},
        ("--mem=0", "--exclusive"),
        {"DGPT_PYTHON": "/home/me/my env/bin/python", "DGPT_CHAIN": "chain-0123456789ab"},
        ("run.toml", "logging.sample_prompt='\"def $(x)`y`'", "run_dir=/scratch/my runs/8b"),
    ),
    "prepare": (
        script("slurm/prepare.sbatch").read_text(),
        {"cpus-per-task": "32", "time": "4:00:00"},
        (),
        {"DGPT_PYTHON": "/usr/bin/python3"},
        ("run.toml",),
    ),
    "finetune": (
        script("slurm/finetune.sbatch").read_text(),
        {"nodes": "1", "gpus-per-node": "8", "signal": "B:USR1@180"},
        (),
        {"DGPT_PYTHON": "/usr/bin/python3"},
        ("task.toml", "lora.rank=8"),
    ),
    "evaluate": (
        script("slurm/evaluate.sbatch").read_text(),
        {"gpus-per-node": "1"},
        (),
        {"DGPT_PYTHON": "/usr/bin/python3", "DGPT_CONTAINER": "images/train.sif"},
        ("runs/mine", "data/mine"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_golden_one(name: str) -> None:
    assert render(*CASES[name]) == (GOLDEN / f"{name}.sbatch").read_text()


@pytest.mark.parametrize("name", CASES)
def test_bash_reads_the_script(name: str) -> None:
    subprocess.run(["bash", "-n"], input=render(*CASES[name]), text=True, check=True)


def test_arguments_come_through_bash_as_they_were() -> None:
    words = ["a b", "x='y'", 'q="1"', "$HOME `id` $(id) \\ * ;&|", "ü", ""]
    text = render('#!/bin/bash\n#SBATCH --requeue\nset -e\nprintf \'%s\\0\' "$A" "$@"\n', {}, (), {"A": "1 $x"}, words)
    shown = subprocess.run(["bash"], input=text, text=True, capture_output=True, check=True).stdout
    assert shown.split("\0")[:-1] == ["1 $x", *words]


def test_options_replace_those_of_the_template() -> None:
    text = render(PRETRAIN, {"signal": "B:USR1@9", "job-name": "mine"}, (), {}, ())
    assert text.count("#SBATCH --signal=") == text.count("#SBATCH --job-name=") == 1
    assert "#SBATCH --signal=B:USR1@9\n" in text
    assert "#SBATCH --requeue\n" in text


@pytest.mark.parametrize(
    "value", ["a\nrm -rf /", "a\r", 'a"b', "a'b", "a\\b", "a # b", "$(id)", "`id`", "a\0", "é\u2028"]
)
def test_text_that_sbatch_would_take_apart_is_refused(value: str) -> None:
    with pytest.raises(UserError, match="--partition = "):
        render(PRETRAIN, {"partition": value}, (), {}, ())
    with pytest.raises(UserError, match="--sbatch-arg = "):
        render(PRETRAIN, {}, (f"--comment={value}",), {}, ())


def test_another_option_of_sbatch_keeps_its_spaces_and_is_one() -> None:
    assert '#SBATCH --comment="my run"\n' in render(PRETRAIN, {}, ("--comment=my run",), {}, ())
    assert "#SBATCH -C gpu\n" in render(PRETRAIN, {}, ("-C gpu",), {}, ())
    with pytest.raises(UserError, match="'mem=0' is no option"):
        render(PRETRAIN, {}, ("mem=0",), {}, ())


@pytest.mark.parametrize("word", ["a\nb", "a\rb", "a\0b"])
def test_an_argument_with_a_line_break_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="line break"):
        render(PRETRAIN, {}, (), {}, ("run.toml", word))


def test_all_words_of_a_golden_script_are_quoted_for_the_shell() -> None:
    line = next(line for line in (GOLDEN / "pretrain.sbatch").read_text().splitlines() if line.startswith("set -- "))
    assert tuple(shlex.split(line)[2:]) == CASES["pretrain"][4]
