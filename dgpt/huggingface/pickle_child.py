"""`python -m dgpt.huggingface.pickle_child IN.bin OUT.safetensors`: the child process of dgpt.huggingface.pickles."""

import pickle
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dgpt.huggingface import sandbox

BYTES_PER_SECOND = 10 << 20  # slower than any disk


def main(source: Path, target: Path) -> None:
    """Raises SystemExit with the reason if the file holds anything but tensors."""
    size = source.stat().st_size
    try:
        sandbox.close(4 * size, 60 + size // BYTES_PER_SECOND)  # 4: fp16 is the smallest, and shared ones are copied
        values = torch.load(source, map_location="cpu", weights_only=True)
        save_file(tensors_of(values), target, metadata={"format": "pt"})
    except (OSError, RuntimeError, ValueError, EOFError, MemoryError, pickle.UnpicklingError) as error:
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split())[:300])


def tensors_of(values: object) -> dict[str, Tensor]:
    """Each with memory of its own. Raises ValueError unless `values` is a table of tensors alone."""
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__}, and no table of tensors")
    found: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in values.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{name!r} is a {type(tensor).__name__}, and no tensor")
        shared = tensor.untyped_storage().data_ptr() in memory
        memory.add(tensor.untyped_storage().data_ptr())
        found[name] = tensor.clone() if shared else tensor.contiguous()
    return found


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
