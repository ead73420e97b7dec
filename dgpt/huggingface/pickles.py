"""Pickled weights as safetensors: each file is opened by a child process that can do nothing else (`sandbox`)."""

import shutil
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

from dgpt.checkpoint.output import cannot_write, check_free
from dgpt.errors import UserError
from dgpt.huggingface.folder import INDEX, SINGLE, Weights, read_json
from dgpt.huggingface.tokenizer import json_bytes

PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
          "special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.model")  # fmt: skip  # data, no code
PATIENCE_SECONDS = 3600.0


def convert(folder: Path, output: Path) -> None:
    """Write `output`: the weights of `folder` as safetensors, and its settings and tokenizer as they are.

    Raises UserError, and leaves nothing behind, if a file holds anything but tensors or is damaged.
    """
    files = _pickles(folder)
    check_free(output, 0)
    temporary = output.with_name(f"{output.name}.tmp-{uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        for name in BESIDE:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, temporary / name)
        names = [SINGLE] if len(files) == 1 else [f"model-{i:05d}-of-{len(files):05d}.safetensors"
                                                  for i in range(1, len(files) + 1)]  # fmt: skip
        for source, name in zip(files, names, strict=True):
            _in_a_child(source, temporary / name)
        if len(files) > 1:
            _write_index(temporary, names)
        Weights.of(temporary)
        temporary.rename(output)
    except OSError as error:
        raise cannot_write(output, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _pickles(folder: Path) -> list[Path]:
    if (folder / PICKLE_INDEX).is_file():
        places = read_json(folder / PICKLE_INDEX).get("weight_map")
        names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    else:
        names = [PICKLE]
    files = [folder / name for name in names if Path(name).name == name]
    missing = next((file for file in files if not file.is_file()), None)
    if missing or not files or len(files) < len(names):
        raise UserError(f"'{missing or folder / PICKLE_INDEX}' is missing, or names files outside of the folder",
                        rule=f"pickled weights are {PICKLE}, or the files that {PICKLE_INDEX} names",
                        fix="give a folder that holds them")  # fmt: skip
    return files


def _in_a_child(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", "dgpt.huggingface.pickle_child", str(source), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        said = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        failed, said = True, [f"it took longer than {PATIENCE_SECONDS:.0f} s"]
    if failed:
        raise UserError(f"'{source}' cannot be converted: {said[0]}",
                        rule="a table from names to tensors, which torch.load(weights_only=True) reads in a process "
                             "that is cut off", fix="take safetensors from where the model came from")  # fmt: skip


def _write_index(folder: Path, names: list[str]) -> None:
    weights = Weights.of_files(folder, [folder / name for name in names])
    places = {name: stored.path.name for name, stored in sorted(weights.tensors.items())}
    (folder / INDEX).write_bytes(json_bytes({"metadata": {}, "weight_map": places}))
