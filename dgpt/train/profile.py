"""Torch profiler traces of chosen steps, as an object beside the loop."""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

TRACED_RANKS = 8  # one node shows stragglers and overlap; traces of a thousand ranks would fill the disk


class Profiler:
    """Writes run_dir/profile/step_00000010_rank_00000.json.gz for each chosen step; open it in ui.perfetto.dev."""

    def __init__(self, steps: Collection[int], run_dir: Path, *, rank: int, device: torch.device) -> None:
        self._steps = frozenset(steps) if rank < TRACED_RANKS else frozenset()
        self._folder = run_dir / "profile"
        self._rank = rank
        self._device = device

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Trace the body if `step` was chosen; any other step costs one set look-up."""
        if step not in self._steps:
            yield
            return
        cuda = self._device.type == "cuda"
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
        with profile(activities=activities, record_shapes=True, profile_memory=True, acc_events=True) as trace:
            yield
            if cuda:
                torch.cuda.synchronize(self._device)  # so that the step's kernels are in its trace
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(self._folder / f"step_{step:08d}_rank_{self._rank:05d}.json.gz"))
        except (OSError, RuntimeError) as error:  # torch says the second of a full disk
            print(f"no trace of step {step} of rank {self._rank}, and training goes on: {error}", file=sys.stderr,
                  flush=True)  # fmt: skip
