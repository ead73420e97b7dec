"""`dgpt submit`: what is checked before, what Slurm gets, and what is said when it refuses."""

from pathlib import Path

import pytest

from dgpt.checkpoint.compatible import read_config
from dgpt.checkpoint.find import open_checkpoint
from dgpt.cli import main
from dgpt.config import RunConfig, load_config
from dgpt.errors import UserError
from dgpt.model.flops import parameter_count
from dgpt.outcome import DONE, MISTAKE
from dgpt.slurm.events import Event, history, now, record
from dgpt.submit import Wish, check_lead, limit_seconds, plan, run_folder
from dgpt.submit_checks import pace
from dgpt.tables import size_text

SMALL = ("model.n_layer=1", "model.n_head=4", "model.n_embd=32", "model.seq_len=16", "training.global_batch_size=8",
         "training.micro_batch_size=2")  # fmt: skip
SBATCH = """n=$(($(cat "$0.n" 2>/dev/null || echo 40) + 1))
echo $n | tee "$0.n"
cat >"$0.in"
sed -n "s/^export DGPT_CHAIN=//p" "$0.in" >"$0.chain"
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
        plan(config_of(tiny_data, tmp_path / "run", *overrides), wanted)


def test_data_that_another_job_prepares_need_not_be_there(tiny_data: Path, tmp_path: Path) -> None:
    plan(config_of(tiny_data, tmp_path / "run", "data.path=later"), wish(dependency="afterok:7"))


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
    assert "export NPROC_PER_NODE=2\n" in text, "that of the login shell would have the last word"
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
    assert main(["submit", run_file, "--verb", "prepare", "--nodes", "2", *SMALL]) == MISTAKE


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


@pytest.mark.parametrize(("gone", "said"), [("true", ""), ("false", ", but not 42, 41: scancel 42 41")])
def test_a_chain_that_slurm_takes_in_part_is_cancelled(run_file: str, fake, capsys, gone: str, said: str) -> None:
    fake("sbatch", f"[[ -e {run_file}.full ]] && {{ echo 'error: job submit limit' >&2; exit 1; }}\n{SBATCH}"
                   f"[[ $n == 42 ]] && touch {run_file}.full; true")  # fmt: skip
    cancelled = fake("scancel", gone)
    assert main(["submit", run_file, "--nodes", "2", "--nproc", "2", "--chain", "3", *SMALL]) == MISTAKE
    assert cancelled() == ["42", "41"]
    message = capsys.readouterr().err
    assert f"job submit limit; the jobs of the chain before it (41, 42) are cancelled{said}\n" in message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("1:30", 90), ("2:00:05", 7205), ("1-0", 86400), ("1-2:30", 95400), ("1-2:30:05", 95405),
     ("", None), ("UNLIMITED", None)],
)  # fmt: skip
def test_times_are_read_as_sbatch_reads_them(text: str, seconds: int | None) -> None:
    assert limit_seconds(text) == seconds


@pytest.mark.parametrize("text", ["soon", "1:2:3:4", "1-", "-1", "1h", "99999999999:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no time"):
        limit_seconds(text)


def test_the_lead_grows_with_the_checkpoint_and_fits_into_the_job(tmp_path: Path) -> None:
    small, large = (load_config(None, [f"run_dir={tmp_path}", *more]) for more in
                    ((), ("model.n_layer=80", "model.n_embd=8192", "model.n_head=64")))  # fmt: skip
    assert pace(small, wish(1)).lead == 135  # 60, two unknown steps of 30, 3 x 5.15 for 12 bytes of each parameter
    assert pace(large, wish(64)).lead < pace(large, wish(32)).lead
    check_lead(120, "5:00")
    with pytest.raises(UserError, match="--time = 2:00 is 120 s, and the signal to save comes 120 s before its end"):
        check_lead(120, "2:00")


def test_the_lead_follows_from_what_the_run_has_measured(run_file: str, fake, capsys) -> None:
    checkpoint = Path("my run/checkpoints/step_00000020")
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text('{"format":1,"seconds":400.5,"mesh":{"world_size":4,"dp_size":4}}')
    rows = ('{"step": 10, "speed/seconds_per_step": 7.0}', '{"step": 20, "time/evaluate_seconds": 30.0}')
    Path("my run/metrics.jsonl").write_text("\n".join(rows) + "\n")
    fake("sbatch", SBATCH)
    assert main(["submit", run_file, "--nodes", "2", "--nproc", "2", "--time", "2:00:00", *SMALL]) == DONE
    said = capsys.readouterr().out
    assert "signal: 1306 s before the time limit" in said  # 60 + 30 + 2 x 7 + 3 x 400.5
    assert "a step takes 7 s (measured), an evaluation 30 s, a save 400 s (measured at step_00000020)" in said
    assert "#SBATCH --signal=B:USR1@1306\n" in Path("my run/slurm/job_41.sbatch").read_text()
    assert "batch: 8 sequences = dp 4 x 2 x 1 micro steps" in said
    assert main(["submit", run_file, "--nodes", "1", "--nproc", "2", "--dry-run", *SMALL]) == DONE
    assert "--signal=B:USR1@2507\n" in capsys.readouterr().out  # two ranks write what four wrote before
    assert main(["submit", run_file, "--nodes", "2", "--nproc", "2", "--time", "15:00", *SMALL]) == MISTAKE
    assert "900 s, and the signal to save comes 1306 s before its end" in capsys.readouterr().err


STOP = Event(now() - 60, "stop", "40", "c", 0, ("n0", "n3"), 0, "what went wrong\ndgpt: rank 7 was killed", 1, ("n3",))
SINFO = 'for n in 0 1 2 3; do echo "n$n idle main*"; done'
HOSTNAMES = 'tr , "\\n" <<<"$3"'


def test_a_node_that_failed_twice_is_left_out_beside_those_of_the_user(run_file: str, fake, capsys) -> None:
    Path("my run").mkdir()
    for name, script in (("sbatch", SBATCH), ("sinfo", SINFO), ("scontrol", HOSTNAMES)):
        fake(name, script)
    command = ["submit", run_file, "--nodes", "2", "--nproc", "2", "--exclude", "n1", *SMALL]
    record(Path("my run"), STOP)
    assert main(command) == DONE
    assert "#SBATCH --exclude=n1\n" in Path("my run/slurm/job_41.sbatch").read_text()
    record(Path("my run"), STOP)
    assert main(command) == DONE
    assert "left out: n3 until " in capsys.readouterr().out
    assert "#SBATCH --exclude=n1,n3\n" in Path("my run/slurm/job_42.sbatch").read_text()
    assert [(event.event, event.job, event.nodes) for event in history(Path("my run"))][-1] == (
        "exclude",
        "42",
        ("n3",),
    )
    command[3], command[5] = "4", "1"
    assert main(command) == DONE
    assert "not left out, as the partition has no more than 4 nodes" in capsys.readouterr().out


def test_nodes_are_used_all_the_same_if_slurm_refuses_the_job_without_them(run_file: str, fake, capsys) -> None:
    Path("my run").mkdir()
    for _ in range(2):
        record(Path("my run"), STOP)
    fake("sinfo", SINFO)
    refuse = 'if grep -q exclude= <<<"$(cat | tee "$0.in")"; then echo "error: not available" >&2; exit 1; fi; echo 41'
    fake("sbatch", refuse)
    assert main(["submit", run_file, "--nodes", "2", "--nproc", "2", *SMALL]) == DONE
    assert "no node is left out: Slurm has too few others for the job" in capsys.readouterr().out


TASK = """
run_dir = "runs/task"
training = { global_batch_size = 8, micro_batch_size = 2 }
"""


def test_a_fine_tuning_is_checked_by_what_it_has(run_file: str, random_run: Path, fake, capsys) -> None:
    fake("sbatch", SBATCH)
    Path("task.toml").write_text(f'base = "{random_run}"\n{TASK}')
    assert main(["submit", "task.toml", "--verb", "finetune", "--nproc", "2"]) == DONE
    said = capsys.readouterr().out
    assert "batch: 8 sequences = dp 2 x 2 x 2 micro steps" in said
    size = size_text(12 * parameter_count(read_config(open_checkpoint(random_run)).model))
    assert f"a checkpoint takes {size}" in said
    assert f"(estimated for {size}" in said
    text = Path("runs/task/slurm/job_41.sbatch").read_text()
    assert ' -m dgpt.slurm.job "$0" finetune "$@"' in text
    assert [event.event for event in history(Path("runs/task"))] == ["submit"]
    assert main(["submit", "task.toml", "--verb", "finetune", "--nproc", "3"]) == MISTAKE
    assert "does not divide over the ranks" in capsys.readouterr().err
    Path("lost.toml").write_text(f'base = "later"\n{TASK}')
    assert main(["submit", "lost.toml", "--verb", "finetune"]) == MISTAKE
    assert "later: is neither a checkpoint nor a run folder" in capsys.readouterr().err
    assert main(["submit", "lost.toml", "--verb", "finetune", "--dependency", "afterok:41"]) == DONE
    assert main(["submit", "task.toml", "--verb", "finetune", "parallel.zero_stage=1"]) == MISTAKE


def test_an_evaluation_keeps_its_own_options(run_file: str, fake) -> None:
    fake("sbatch", SBATCH)
    Path("my run/checkpoints/step_00000010").mkdir(parents=True)
    assert main(["submit", "my run/checkpoints/step_00000010", "--verb", "evaluate", "--", "a b", "--json"]) == DONE
    assert "set -- 'my run/checkpoints/step_00000010' 'a b' --json\n" in Path("my run/slurm/job_41.sbatch").read_text()
    assert run_folder("s3://bucket/model") == Path("evaluations")
    for unheard in (["--nproc", "2"], ["--chain", "2"], ["--nodes", "2"], ["--signal-lead", "99"]):
        assert main(["submit", "my run", "--verb", "evaluate", *unheard]) == MISTAKE
