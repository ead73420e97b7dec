"""Jobs of dgpt on the cluster of the tests: submitted by hand, watched by what Slurm and the run folder say."""

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from cluster import wait_for
from hosts import Hosts

from dgpt.checkpoint import open_checkpoint
from dgpt.checkpoint.diff import Difference, diff
from dgpt.train.rows import read_rows

Figure = Callable[[str, float], None]  # what was measured, seconds
ROOT = Path(__file__).parents[2]
STEPS = 100
RANK = "dgpt rank "  # and its number: the name of a process
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY")
RUN = f"""
model = {{ n_layer = 1, n_head = 2, n_embd = 32, seq_len = 32, vocab_multiple = 32 }}
tokenizer = {{ vocab_size = 300 }}
optimizer = {{ lr = 1e-2 }}
schedule = {{ warmup_steps = 10, min_lr = 1e-4 }}
training = {{ steps = {STEPS}, global_batch_size = 8, micro_batch_size = 2, eval_every_steps = 0 }}
checkpoint = {{ every_steps = 20, keep_last = 9 }}
resume = {{ stale_lock_seconds = 10 }}
logging = {{ every_steps = 1, tensorboard = false }}
precision = {{ dtype = "fp32" }}
slurm = {{ preflight = false }}
data = {{ path = "%s", num_workers = 1 }}
"""


@dataclass(frozen=True)
class Job:
    cluster: Hosts
    number: str
    run_dir: Path

    def record(self) -> dict[str, str]:
        """What `scontrol show job` says."""
        words = self.cluster.run("scontrol", "show", "job", "-o", self.number).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self) -> str:
        """Of Slurm. A job that was requeued waits 2 seconds here, not 120: nodes refuse it within the same second."""
        record, soon = self.record(), (datetime.now() + timedelta(seconds=10)).isoformat()
        if record["Reason"] == "BeginTime" and soon < record["StartTime"] != "Unknown":
            self.cluster.run("scontrol", "update", f"JobId={self.number}", "StartTime=now+2", check=False)
        return record["JobState"]

    def end(self, seconds: float = 240) -> str:
        """Its last state, after all restarts."""

        def ended() -> str:
            """A job that failed or lost its node may be on its way back to the queue."""
            states = {self.state() for _ in range(10)} if self.state() in ENDED else set()
            return states.pop() if len(states) == 1 else ""

        return wait_for(ended, f"job {self.number} ends", seconds, self.tail)

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        """Fails when the job ends before."""

        def there() -> bool:
            assert self.state() not in ENDED, self.tail()
            return max(losses(self.run_dir), default=0) >= step

        wait_for(there, f"step {step}", seconds, self.tail)

    def tail(self) -> str:
        """What people look at when something went wrong: its state, and the end of its output and of each log."""
        texts = (f"{path}:\n{path.read_text()[-1500:]}" for path in self._outputs())
        return "\n".join((f"job {self.number} is {self.state()}", *texts))

    def text(self) -> str:
        """All that it has printed, on all nodes."""
        return "".join(path.read_text() for path in self._outputs())

    def _outputs(self) -> list[Path]:
        output = self.run_dir / "slurm" / f"job_{self.number}.out"
        return [path for path in (output, *sorted(self.run_dir.glob("logs/restart_*/*.log"))) if path.exists()]

    def events(self) -> list[dict[str, Any]]:
        """Starts and stops of the run."""
        lines = (self.run_dir / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] != "submit"]

    def starts(self) -> list[list[str]]:
        """The nodes of each start."""
        return [event["nodes"] for event in self.events() if event["event"] == "start"]

    def stopped_at(self) -> int:
        """The step at which it last saved because it was asked to end; 0 if it never did."""
        steps = re.findall(r"stopped by .* at step (\d+), saved", self.text())
        return int(steps[-1]) if steps else 0

    def preflight_seconds(self) -> float:
        """Of the last one, as it says."""
        return float(re.findall(r"preflight: .* ranks, ([\d.]+) s", self.text())[-1])

    def agents(self) -> dict[str, psutil.Process]:
        """Node -> the launcher of its ranks."""
        return {name: process for name in self.cluster.names for process in self.cluster.processes(name)
                if "dgpt.agent" in process.cmdline() and not process.name().startswith(RANK)}  # fmt: skip

    def ranks(self) -> dict[int, psutil.Process]:
        workers = (worker for agent in self.agents().values() for worker in agent.children())
        return {int(worker.name().removeprefix(RANK)): worker for worker in workers}


def submit(cluster: Hosts, folder: Path, name: str, *overrides: str, nodes: int = 2, processes: int = 2,
           options: tuple[str, ...] = (), **environment: str) -> Job:  # fmt: skip
    """`sbatch slurm/pretrain.sbatch run.toml` in `folder`, for the run folder `name` in it."""
    done = cluster.run(
        "sbatch", "--parsable", f"--nodes={nodes}", *options, str(ROOT / "slurm" / "pretrain.sbatch"), "run.toml",
        f"run_dir={folder / name}", *overrides, cwd=folder, DGPT_PYTHON=sys.executable, OMP_NUM_THREADS="1",
        NPROC_PER_NODE=str(processes), **environment,
    )  # fmt: skip
    return Job(cluster, done.stdout.strip(), folder / name)


def losses(run_dir: Path) -> dict[int, float]:
    """Step -> loss; a step that is there twice is an error."""
    path = run_dir / "metrics.jsonl"
    rows = [(int(row["step"] or 0), float(row["loss/train"] or 0)) for row in read_rows(path)] if path.exists() else []
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def difference(run_dir: Path, other: Path) -> Difference:
    """Between the newest checkpoints of two runs: weights and the state of the optimizer."""
    return diff(open_checkpoint(run_dir), open_checkpoint(other))


def assert_same_run(run_dir: Path, other: Path) -> None:
    """Every step once, with the same loss, and the same weights in the end, bit for bit."""
    assert list(losses(run_dir)) == [*range(1, STEPS + 1)]
    assert losses(run_dir) == losses(other)
    assert difference(run_dir, other).equal


def recover(job: Job, fault_time: float, figure: Figure, what: str) -> None:
    """Wait for the second start of a run after a fault, for the first step that is new, then for the end."""
    wait_for(lambda: job.state() and len(job.starts()) > 1, "the second start", 240, job.tail)
    job.wait_for_step(max(losses(job.run_dir)) + 1)
    figure(f"{what}, until the next new step", time.monotonic() - fault_time)
    assert job.end() == "COMPLETED", job.tail()
