"""What a mistake looks like on the command line: one message with value, rule and fix, exit code 2, no stack trace."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dgpt.cli import main
from dgpt.outcome import DONE, MISTAKE

RUN = """
run_dir = "{folder}/run"
model = {{ n_layer = 1, n_head = 2, n_embd = 16, seq_len = 16 }}
data = {{ path = "{data}", sources = [{{ path = "texts" }}] }}
schedule = {{ warmup_steps = 0 }}
training = {{ steps = 2, global_batch_size = 4, micro_batch_size = 2, eval_every_steps = 0 }}
checkpoint = {{ every_steps = 1 }}
logging = {{ tensorboard = false }}
"""
Mistake = Callable[..., str]


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.toml and the finished run run/ of two checkpoints; copy it to change it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "run.toml").write_text(RUN.format(folder=folder, data=tiny_data))
    assert main(["pretrain", str(folder / "run.toml")]) == DONE
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("verb", ["prepare", "pretrain", "parity"])
def test_a_config_file_that_is_none(mistake: Mistake, tmp_path: Path, verb: str) -> None:
    message = mistake(verb, tmp_path / "none.toml")
    assert message.startswith(f"config file '{tmp_path / 'none.toml'}' does not exist\n")
    assert mistake(verb, tmp_path).startswith(f"config file '{tmp_path}' cannot be read: [Errno 21] Is a directory")
    for content in (b"model = {", b"\xff\xfe", b"seed: 3"):
        (tmp_path / "run.toml").write_bytes(content)
        assert mistake(verb, tmp_path / "run.toml").startswith(f"config file '{tmp_path / 'run.toml'}' cannot be read:")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model.n_layers=3", "model.n_layers = 3: no such setting; did you mean n_layer?"),
        ("optimiser.lr=1", "did you mean optimizer?"),
        ("training.global_batch_size=5",
         "training.global_batch_size = 5 must be a multiple of training.micro_batch_size = 2; change one of them"),
        ("model.n_head=3", "n_embd = 16 must be a multiple of n_head = 3; change one of them"),
        ("model.n_kv_head=3", "n_head = 2 must be a multiple of n_kv_head = 3; change one"),
        ("parallel.tp=4", "parallel.tp = 4 must divide model.n_head = 2"),
        ("model.dropout=1.5", "model.dropout = 1.5: input should be less than 1"),
        ("optimizer.lr=big", "optimizer.lr = 'big': input should be a valid number"),
        ("n_layer", "override 'n_layer' is not a setting"),
        ("data.path=/nowhere", "data.path = '/nowhere' holds no prepared data"),
        ("model.vocab_size=7", "model.vocab_size = 7, but the tokenizer of '"),
        ("parallel.tp=2", "parallel.tp = 2 does not divide the world: world_size 1 = dp x tp 2"),
        ("training.global_batch_size=20000", "too few for one batch of training.global_batch_size = 20000"),
        ("run_dir=/dev/null", "run_dir = '/dev/null' cannot be written: there is a file at '/dev/null'"),
        ("parallel.offload_optimizer=true", "parallel.offload_optimizer = true with one process"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work(mistake: Mistake, trained: Path, tmp_path: Path, override: str, part: str) -> None:
    assert part in mistake("pretrain", trained / "run.toml", f"run_dir={tmp_path / 'new'}", override)
    assert not (tmp_path / "new").exists()


def test_a_number_of_processes_that_cannot_be(mistake: Mistake, trained: Path) -> None:
    assert mistake("pretrain", trained / "run.toml", "--nproc", "0").startswith("--nproc = 0, and this machine shows")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model.n_layer=2", "is of another model: model.n_layer = 1 there, 2 in this run"),
        ("model.n_embd=32", "is of another model: model.n_embd = 16 there, 32 in this run"),
        ("model.tie_embeddings=false", "is of another model: model.tie_embeddings = True there, False in this run"),
        ("model.shape=llama", "is of another model: model."),
        ("seed=1", "seed = 1 now, 1337 in the checkpoint "),
        ("training.global_batch_size=8", "training.global_batch_size = 8 now, 4 in the checkpoint "),
        ("model.seq_len=8", "model.seq_len = 16 there, 8 in this run"),
        ("data.reset_at_document=true", "data.reset_at_document = True now, False in the checkpoint "),
    ],
)
def test_a_run_folder_of_another_run(mistake: Mistake, trained: Path, override: str, part: str) -> None:
    before = contents(trained)
    message = mistake("pretrain", trained / "run.toml", "training.steps=3", override)
    assert part in message
    assert "step_00000002" in message
    assert "run_dir" in message.split("fix:")[1]
    assert contents(trained) == before


def test_a_run_folder_of_other_data(mistake: Mistake, trained: Path, tiny_data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    index = (data / "index.json").read_text()
    (data / "index.json").write_text(index.replace("val_00000.docs", "val_00009.docs"))
    next(data.glob("*/val_00000.docs")).rename(next(data.glob("*/val_00000.bin")).with_name("val_00009.docs"))
    message = mistake("pretrain", trained / "run.toml", "training.steps=3", f"data.path={data}")
    hashes = r"data \(\w{12}\) other than that of the checkpoint .*step_00000002 \(\w{12}\)\n"
    assert re.match(rf"data.path = '{data}' holds {hashes}", message)


def test_a_run_folder_without_a_whole_checkpoint(mistake: Mistake, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    for file in run.rglob("rank_00000.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    before = contents(run)
    for command in (("pretrain", trained / "run.toml", f"run_dir={run}", "training.steps=3"), ("generate", run)):
        message = mistake(*command)
        assert f"checkpoint {run / 'checkpoints'}: none of the 2 checkpoints here is whole:" in message
        assert "step_00000001/rank_00000.safetensors: expected" in message
        assert "step_00000002/rank_00000.safetensors: expected" in message
    assert contents(run) == before


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--temperature", "-1"), "temperature = -1.0 cannot be used"),
        (("--temperature", "nan"), "temperature = nan cannot be used"),
        (("--top-p", "0"), "top_p = 0.0 cannot be used"),
        (("--top-k", "-2"), "top_k = -2 cannot be used"),
        (("--samples", "0"), "samples = 0 cannot be used"),
        (("--samples", "1000000000"), "samples = 1000000000 cannot be used"),
        (("--max-new-tokens", "9" * 20), "max_new_tokens = 99999999999999999999"),
        (("--batch-size", "0"), "batch_size = 0 cannot be used"),
        (("--max-new-tokens", "0"), "max_new_tokens = 0 cannot be used"),
        (("--stop", ""), "stop string '' is empty"),
        (("--prompts-file", "/nowhere"), "--prompts-file = '/nowhere' cannot be read"),
        (("ba " * 99,), "the model's seq_len is 16"),
    ],
)
def test_a_wish_that_generate_cannot_fulfil(
    mistake: Mistake, trained: Path, arguments: tuple[str, ...], part: str
) -> None:
    assert part in mistake("generate", trained / "run", *arguments)


@pytest.mark.parametrize(
    "command", [("generate",), ("checkpoint", "verify"), ("checkpoint", "show")], ids=lambda words: words[-1]
)
def test_a_folder_without_checkpoints(mistake: Mistake, tmp_path: Path, command: tuple[str, ...]) -> None:
    for path in (tmp_path, tmp_path / "none"):
        message = mistake(*command, path)
        assert message.startswith(f"checkpoint {path}: is neither a checkpoint nor a run folder with checkpoints\n")


def test_list_of_no_folder_and_tensorboard_of_no_events(mistake: Mistake, tmp_path: Path) -> None:
    assert mistake("checkpoint", "list", tmp_path / "none").startswith(f"'{tmp_path / 'none'}' is not a folder")
    assert mistake("tensorboard", tmp_path / "none").startswith(f"run folder '{tmp_path / 'none'}' does not exist")
    assert mistake("tensorboard", tmp_path).startswith(f"'{tmp_path}' holds no TensorBoard events")


def test_verify_names_every_damaged_file(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(trained / "run" / "checkpoints" / "step_00000002", tmp_path / "step_00000002"))
    file = folder / "rank_00000.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    (folder / "stranger").touch()
    assert main(["checkpoint", "verify", str(folder)]) == MISTAKE
    output, errors = capsys.readouterr()
    assert output.splitlines() == [
        f"{folder / 'stranger'}: not part of this checkpoint", "  fix: move it elsewhere; dgpt never opens it",
        f"{file}: expected {size} bytes, found {size - 1}",
        "  fix: use another checkpoint, or restore the file from a copy",
    ]  # fmt: skip
    assert errors == ""


@pytest.mark.parametrize(("sources", "part"), [("{path='/nowhere'}", "no documents found in '/nowhere'"),
                                               ("{}", "exactly one of path, dataset, builtin")])  # fmt: skip
def test_a_source_that_is_none(mistake: Mistake, tmp_path: Path, sources: str, part: str) -> None:
    (tmp_path / "run.toml").write_text(f"data.sources = [{sources}]\ndata.path = '{tmp_path / 'data'}'")
    assert part in mistake("prepare", tmp_path / "run.toml")


def test_parity_needs_several_processes(mistake: Mistake, trained: Path) -> None:
    assert mistake("parity", trained / "run.toml").startswith("parity with one process\n")


def test_a_loss_that_explodes_is_no_mistake_but_no_stack_trace_either(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"run_dir={tmp_path / 'run'}"
    assert main(["pretrain", str(trained / "run.toml"), run, "training.steps=9", "optimizer.lr=1e38"]) == 1
    errors = capsys.readouterr().err
    assert re.match(
        r"dgpt: step \d: the loss or the gradient is not finite\n  rank 0: the loss on samples \d, ", errors
    )
    assert "Traceback" not in errors
