"""What a start costs: imports beyond torch, and the first step without a compiler.

    python -m benchmarks.start

`import dgpt` and all that `dgpt pretrain` imports are timed in fresh processes, after torch. The first step is timed
from the start of the processes to its end, with no program in PATH and an empty folder for extensions, where DeepSpeed
would put what it compiles; plain DeepSpeed stands beside it with the usual PATH.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.train import Runner, write_tokens
from benchmarks.train_spec import SIZES, Arm

IMPORTS = """
import json, time
times = []
for name in ("torch", "dgpt", "dgpt.pretrain"):
    start = time.perf_counter()
    __import__(name)
    times.append(time.perf_counter() - start)
print(json.dumps(times))
"""
REPEATS, BAR_SECONDS = 5, 0.3
KINDS = (("dgpt", 1), ("dgpt-zero1", 2), ("dgpt-zero3", 2), ("dgpt-tp2", 2))


def main() -> None:
    torch, dgpt, pretrain = import_seconds()
    verdict = "met" if dgpt <= BAR_SECONDS else "MISSED"
    print(f"import torch {torch:.2f} s; then dgpt {dgpt:.3f} s (bar {BAR_SECONDS} s {verdict}); then all of a run "
          f"{pretrain:.2f} s", flush=True)  # fmt: skip
    print("\n| first step | seconds | compiled |\n|---|---|---|")
    for kind, processes in KINDS:
        seconds, compiled = first_step(Arm(kind, "fp32", processes), PATH="")
        print(f"| {kind} x{processes}, no PATH | {seconds:.1f} | {', '.join(compiled) or 'nothing'} |", flush=True)
    seconds, compiled = first_step(Arm("deepspeed-zero1", "fp32", 2))
    print(f"| deepspeed-zero1 x2 | {seconds:.1f} | {', '.join(compiled) or 'nothing'} |")


def import_seconds() -> list[float]:
    """Medians over fresh processes: of torch, of dgpt after it, and of dgpt.pretrain after that."""
    command = [sys.executable, "-c", IMPORTS]
    runs = [json.loads(subprocess.check_output(command, text=True)) for _ in range(REPEATS)]
    return [statistics.median(column) for column in zip(*runs, strict=True)]


def first_step(arm: Arm, **environment: str) -> tuple[float, list[str]]:
    """Seconds from the start of the processes of `arm` to the end of their first step, and what was compiled."""
    with tempfile.TemporaryDirectory(prefix="dgpt-benchmark-") as name:
        folder, extensions = Path(name), Path(name) / "extensions"
        extensions.mkdir()
        write_tokens(folder / "tokens", SIZES["small"].model["vocab_size"])
        start = time.perf_counter()
        runner = Runner(arm, SIZES["small"], 1, 1, folder, TORCH_EXTENSIONS_DIR=str(extensions), **environment)
        try:
            runner.round()
            seconds = time.perf_counter() - start
        finally:
            runner.kill()
        return seconds, sorted(os.listdir(extensions))


if __name__ == "__main__":
    main()
