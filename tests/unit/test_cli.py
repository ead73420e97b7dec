"""The verbs' help, options and settings on the command line."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel

from dgpt import __version__
from dgpt.cli import main
from dgpt.config import FinetuneConfig, LoopConfig, RunConfig, load_settings
from dgpt.config.section import section_of
from dgpt.outcome import DONE

ROOT = Path(__file__).parents[2]
VERBS = ("prepare", "pretrain", "finetune", "predict", "submit", "doctor", "status", "logs", "stop", "save",
         "generate", "chat", "evaluate", "checkpoint", "export", "import", "convert-pickle", "tensorboard",
         "parity")  # fmt: skip


VERBS_ON_CONFIGS = {"prepare": "configs/pretrain", "pretrain": "configs/pretrain", "parity": "configs/pretrain",
                    "finetune": "configs/finetune"}  # fmt: skip


def load(verb: str, path: Path, overrides: Sequence[str]) -> LoopConfig:
    return load_settings(FinetuneConfig if verb == "finetune" else RunConfig, path, overrides)


def help_of(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys=capsys)
    assert all(re.search(rf"^ +{verb}\b", text, re.MULTILINE) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of(verb, capsys=capsys).startswith(f"usage: dgpt {verb} ")


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf setting with its description."""
    for name, field in model.model_fields.items():
        if section := section_of(field):
            yield from fields(section, f"{prefix}{name}." if field.annotation is section else "")
        else:
            yield f"{prefix}{name}", str(field.description)


@pytest.mark.parametrize("verb", ["prepare", "pretrain"])
def test_help_shows_every_setting_with_its_meaning(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, names = help_of(verb, capsys=capsys), list(fields(RunConfig))
    assert len(names) > 80
    for name, description in names:
        assert f"\n  {name} = " in text
        assert f"\n      {description}" in text


def test_help_is_quick_it_imports_no_torch() -> None:
    code = (
        "import sys; from dgpt.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'deepspeed', 'numpy', 'datasets', 'sentencepiece', 'rich'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    for arguments in (["--help"], ["pretrain", "--help"], ["pretrain", "configs/pretrain/demo.toml", "--print-config"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True,
                              check=False)  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("verb", "config"),
    [(verb, config) for verb in VERBS_ON_CONFIGS for config in sorted((ROOT / VERBS_ON_CONFIGS[verb]).rglob("*.toml"))],
    ids=lambda value: getattr(value, "stem", value),
)
def test_printed_settings_are_the_settings(
    verb: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["optimizer.lr=1.5e-3", "logging.sample_prompt=a \"b\" 'c'\\\n\x7f é"]
    assert main([verb, str(config), "--print-config", *overrides]) == DONE
    (tmp_path / "printed.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert load(verb, tmp_path / "printed.toml", ()) == load(verb, config, overrides)


def test_overrides_may_stand_before_and_after_options(capsys: pytest.CaptureFixture[str]) -> None:
    demo = str(ROOT / "configs/pretrain/demo.toml")
    printed = []
    for words in (["seed=3", "run_dir=x", "--print-config", "--nproc", "2"],
                  ["--print-config", "seed=3", "--nproc=2", "run_dir=x"],
                  ["--nproc", "2", "--print-config", "seed=3", "run_dir=x"]):  # fmt: skip
        assert main(["pretrain", demo, *words]) == DONE
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    assert printed[0].startswith('run_dir = "x"\nseed = 3\n')


@pytest.mark.parametrize(
    "arguments",
    [(), ("train",), ("pretrain",), ("pretrain", "x.toml", "--nproc", "two"), ("pretrain", "x.toml", "--print"),
     ("pretrain", "x.toml", "--npro", "2"), ("pretrain", "x.toml", "seed=1", "--lr", "3"), ("checkpoint", "drop", "x"),
     ("checkpoint",), ("checkpoint", "list", "x", "y"), ("checkpoint", "diff", "x"), ("checkpoint", "average", "x"),
     ("export", "x"), ("export", "x", "y", "--dtype", "fp8"),
     ("export", "x", "y", "--max-shard-size", "0"), ("export", "x", "y", "--max-shard-size", "0.5"),
     ("export", "x", "y", "--max-shard-size", "5 tons"), ("import", "x"),
     ("generate",), ("generate", "x", "--temprature", "1")],
    ids=" ".join,
)  # fmt: skip
def test_what_the_command_line_does_not_know(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: dgpt")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"dgpt {__version__}\n"


@pytest.mark.parametrize("words", [["--nproc", "2"], ["--nproc=2"], []], ids=" ".join)
def test_workers_get_the_command_without_nproc(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").touch()
    launched = []
    monkeypatch.setattr("dgpt.launch.local_processes", lambda nproc: 2)
    monkeypatch.setattr("dgpt.launch.needs_torchrun", lambda processes: True)
    monkeypatch.setattr("dgpt.launch.launch", lambda command, processes: launched.append((command, processes)))
    monkeypatch.setattr("dgpt.pretrain.pretrain", lambda config: DONE)
    command = ["pretrain", *words, str(tmp_path / "run.toml"), "seed=3"]
    monkeypatch.setattr(sys, "argv", ["dgpt", *command])
    assert main() == DONE
    assert launched == [(["-m", "dgpt.cli", "pretrain", str(tmp_path / "run.toml"), "seed=3"], 2)]


@pytest.mark.parametrize("option", ["--steps=0", "--steps=-1", "--tolerance=nan", "--tolerance=0", "--tolerance=inf"])
def test_parity_of_nothing_is_a_mistake(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["parity", "run.toml", option])
    assert caught.value.code == 2
    assert f"argument {option.partition('=')[0]}: " in capsys.readouterr().err
