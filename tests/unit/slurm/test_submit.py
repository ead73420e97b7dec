"""`dgpt submit`: what is checked before, what Slurm gets, and what is said when it refuses."""

from pathlib import Path

import pytest

from dgpt.cli import main
from dgpt.config import RunConfig, load_config
from dgpt.errors import UserError
from dgpt.outcome import DONE, MISTAKE
from dgpt.slurm.events import history
from dgpt.submit import Wish, check, check_lead, lead_seconds, limit_seconds

SMALL = ("model.n_layer=1", "model.n_head=4", "model.n_embd=32", "model.seq_len=16", "training.global_batch_size=8",
         "training.micro_batch_size=2")  # fmt: skip
SBATCH = """n=$(($(cat "$0.n" 2>/dev/null || echo 40) + 1))
echo $n | tee "$0.n"
cat >"$0.in"
echo "$DGPT_CHAIN" >"$0.chain"
"""


def config_of(data: Path, run_dir: Path, *overrides: str) -> RunConfig:
    return load_config(None, [f"data.path={data}", f"run_dir={run_dir}", *SMALL, *overrides])


def wish(nodes: int = 2, processes: int = 2, **options: str) -> Wish:
    return Wish("pretrain", nodes, processes, options, (), 1, None, "", ("run.toml",))


@pytest.mark.parametrize(
    ("overrides", "wanted", "said"),
    [
        ((), wish(3, 1), "training.global_batch_size = 8 does not divide over the ranks"),
        (("parallel.tp=4",), wish(2, 2), "parallel.tp = 4 with 2 processes on each node"),
        (("parallel.tp=2",), wish(1, 1), "parallel.tp = 2 does not divide the world"),
        (("parallel.tp=2", "parallel.zero_stage=0", "precision.dtype=bf16"), wish(), "zero_stage = 0 with parallel.tp"),
        (("model.vocab_size=301",), wish(), "model.vocab_size = 301, but the tokenizer"),
        (("data.path=nowhere",), wish(), "'nowhere'"),
        (("run_dir=s3://bucket/run",), wish(), "is a URL"),
        ((), wish(array="1-4"), "--array = 1-4 would run jobs of one run at the same time"),
    ],
)
def test_what_cannot_work_is_refused_before_anybody_queues(
    tiny_data: Path, tmp_path: Path, overrides: tuple[str, ...], wanted: Wish, said: str
) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        check(config_of(tiny_data, tmp_path / "run", *overrides), wanted)


def test_data_that_another_job_prepares_need_not_be_there(tiny_data: Path, tmp_path: Path) -> None:
    check(config_of(tiny_data, tmp_path / "run", "data.path=later"), wish(dependency="afterok:7"))


@pytest.fixture
def run_file(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(f'run_dir = "my run"\ndata.path = "{tiny_data}"\n')
    return "run.toml"


def test_submit_gives_slurm_the_script_and_keeps_it(run_file: str, fake, tmp_path: Path, capsys) -> None:
    calls = fake("sbatch", SBATCH)
    assert (
        main(["submit", run_file, "--nodes", "2", "--gpus-per-node", "2", "--time", "1:00:00", "--chain", "2", *SMALL])
        == DONE
    )
    assert "submitted job 41, 42; script and output in my run/slurm" in capsys.readouterr().out
    assert calls() == ["--parsable", "--parsable --dependency=afterany:41"]
    text = Path("my run/slurm/job_41.sbatch").read_text()
    assert (tmp_path / "bin/sbatch.in").read_text() == text == Path("my run/slurm/job_42.sbatch").read_text()
    for line in (
        "--nodes=2",
        "--gpus-per-node=2",
        f'--output="{tmp_path}/my run/slurm/job_%j.out"',
        f"--chdir={tmp_path}",
    ):
        assert f"#SBATCH {line}\n" in text
    assert f"set -- run.toml {' '.join(SMALL)}\n" in text
    first, second = history(Path("my run"))
    assert (first.job, second.job) == ("41", "42")
    assert first.chain == second.chain == (tmp_path / "bin/sbatch.chain").read_text().strip()


def test_a_dry_run_prints_the_script_and_submits_nothing(run_file: str, fake, capsys) -> None:
    calls = fake("sbatch", SBATCH)
    assert main(["submit", run_file, "--nproc", "2", "--dry-run", *SMALL]) == DONE
    shown = capsys.readouterr().out
    assert shown.startswith("#!/usr/bin/env bash\n#SBATCH ")
    assert "export NPROC_PER_NODE=2\n" in shown
    assert calls() == []


def test_prepare_goes_to_cpu_nodes(run_file: str, fake, capsys) -> None:
    fake("sbatch", SBATCH)
    assert main(["submit", run_file, "--verb", "prepare", "--cpus-per-task", "32", *SMALL]) == DONE
    text = Path("my run/slurm/job_41.sbatch").read_text()
    assert "#SBATCH --cpus-per-task=32\n" in text
    assert " -m dgpt.cli prepare " in text
    assert history(Path("my run")) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'sbatch: error: invalid partition specified: gpux' >&2; exit 1",
            "Slurm refuses the job: sbatch: error: inv",
        ),
        (None, "there is no command 'sbatch' on this machine"),
    ],
)
def test_a_refusal_is_said_with_what_to_do(
    run_file: str, fake, capsys, monkeypatch, script: str | None, said: str
) -> None:
    fake("sbatch", script) if script else monkeypatch.setenv("PATH", "/nowhere")
    assert main(["submit", run_file, *SMALL]) == MISTAKE
    message = capsys.readouterr().err
    assert said in message
    assert "\n  fix:  " in message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("1:30", 90), ("2:00:05", 7205), ("1-0", 86400), ("1-2:30", 95400), ("1-2:30:05", 95405),
     ("", None), ("UNLIMITED", None)],
)  # fmt: skip
def test_times_are_read_as_sbatch_reads_them(text: str, seconds: int | None) -> None:
    assert limit_seconds(text) == seconds


@pytest.mark.parametrize("text", ["soon", "1:2:3:4", "1-", "-1", "1h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no time"):
        limit_seconds(text)


def test_the_lead_grows_with_the_checkpoint_and_fits_into_the_job() -> None:
    small, large = load_config(None), load_config(None, ["model.n_layer=80", "model.n_embd=8192", "model.n_head=64"])
    assert lead_seconds(small, 1, 1.0) == 120
    assert lead_seconds(large, 64, 10.0) < lead_seconds(large, 32, 10.0)
    assert lead_seconds(small, 1, 600.0) > 1200
    check_lead(120, "5:00")
    with pytest.raises(UserError, match="--time = 2:00 is 120 s, and the signal to save comes 120 s before its end"):
        check_lead(120, "2:00")
