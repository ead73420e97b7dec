"""Pickled weights are refused, but for the verb that opens them in a process that is cut off."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dgpt.cli import main
from dgpt.huggingface.pickle_child import tensors_of
from dgpt.outcome import DONE, MISTAKE


class Command:
    """Pickles to a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.fixture
def pickled(make_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder of transformers with pytorch_model.bin in place of its safetensors, and those beside it."""
    folder = tmp_path / "pickled"
    assert main(["export", str(make_run()), str(folder)]) == DONE
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]  # tied: one memory under two names
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    capsys.readouterr()
    return folder


def test_import_refuses_a_pickle_and_names_the_verb(
    pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(pickled), str(tmp_path / "ours")]) == MISTAKE
    message = capsys.readouterr().err
    assert f"'{pickled / 'pytorch_model.bin'}' is a pickle" in message
    assert f"dgpt convert-pickle {pickled}" in message


def test_a_converted_pickle_is_the_same_model(pickled: Path, tmp_path: Path) -> None:
    assert main(["convert-pickle", str(pickled), str(tmp_path / "new")]) == DONE
    expected = load_file(tmp_path / "model.safetensors")
    found = load_file(tmp_path / "new" / "model.safetensors")
    assert found.keys() - expected.keys() == {"lm_head.weight"}
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert main(["import", str(tmp_path / "new"), str(tmp_path / "ours")]) == DONE


def test_shards_are_converted_one_by_one_and_get_an_index(pickled: Path, tmp_path: Path) -> None:
    tensors = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    (pickled / "pytorch_model.bin").unlink()
    names = sorted(tensors)
    places = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(places.values()):
        torch.save({name: tensors[name] for name in names if places[name] == file}, pickled / file)
    (pickled / "pytorch_model.bin.index.json").write_text(str({"weight_map": places}).replace("'", '"'))
    assert main(["convert-pickle", str(pickled), str(tmp_path / "new")]) == DONE
    assert len(list((tmp_path / "new").glob("model-*.safetensors"))) == 2
    assert main(["import", str(tmp_path / "new"), str(tmp_path / "ours")]) == DONE


@pytest.mark.parametrize("kind", ["call", "cut"])
def test_anything_but_tensors_is_refused_and_runs_nothing(
    kind: str, pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pickled / "pytorch_model.bin"
    evil = Command(f"touch {tmp_path / 'ran'}")
    if kind == "call":
        torch.save({"a": evil}, file)
    else:
        file.write_bytes(file.read_bytes()[:-1000])
    assert main(["convert-pickle", str(pickled), str(tmp_path / "new")]) == MISTAKE
    message = capsys.readouterr().err
    assert re.fullmatch(r"dgpt: (?s:.+)\n  rule: .+\n  fix:  .+\n", message)
    assert f"'{file}' cannot be converted: " in message
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize(
    "values", [[torch.ones(1)], {"a": 1}, {1: torch.ones(1)}, {"a": {"b": torch.ones(1)}}], ids=str
)
def test_only_a_table_of_tensors_is_converted(values: Any) -> None:
    with pytest.raises(ValueError, match="and no"):
        tensors_of(values)


SANDBOX = """
import socket, subprocess, sys
from dgpt.huggingface.sandbox import close
close(0, 1)
for attempt in (lambda: socket.socket(), lambda: socket.socketpair(), lambda: subprocess.run(["true"]),
                lambda: bytearray(8 << 30)):
    try:
        attempt()
        print("possible")
    except (PermissionError, MemoryError) as error:
        print(type(error).__name__)
sys.stdout.flush()
while True:
    pass
"""


def test_a_closed_process_has_no_network_no_programs_and_little_memory_and_time() -> None:
    done = subprocess.run([sys.executable, "-c", SANDBOX], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["PermissionError"] * 3 + ["MemoryError"], done.stderr
    assert done.returncode < 0  # ended by the kernel after a second of CPU time
