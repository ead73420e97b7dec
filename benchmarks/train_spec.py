"""What benchmarks.train compares: sizes, arms, and the bars that ratios between arms have to meet. Imports no torch."""

from dataclasses import dataclass

from dgpt.config import RunConfig, load_config


@dataclass(frozen=True)
class Size:
    """A model and its global batch."""

    name: str
    model: dict[str, int]
    batch: int  # sequences per optimizer step, over all ranks
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    compile: bool = False


@dataclass(frozen=True)
class Arm:
    """One competitor: `processes` ranks that train in `dtype`."""

    kind: str
    dtype: str
    processes: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.dtype} x{self.processes}"

    @property
    def tp(self) -> int:
        return 2 if self.kind == "dgpt-tp2" else 1

    @property
    def zero_stage(self) -> int:
        return int(self.kind[-1]) if "zero" in self.kind else 1


@dataclass(frozen=True)
class Bar:
    """tokens/s of `arm` over those of `peer`, and the least that it should be (None: only shown)."""

    arm: Arm
    peer: Arm
    least: float | None


SMALL = {"n_layer": 6, "n_head": 6, "n_embd": 384, "seq_len": 256}
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "seq_len": 1024}
SIZES = {
    size.name: size
    for size in (
        Size("small", SMALL | {"vocab_size": 96, "vocab_multiple": 32}, batch=8),  # 10.7M parameters
        Size("vocab", SMALL | {"vocab_size": 50304}, batch=8),  # 30M: the head dominates
        Size("gpt2-124m", GPT2 | {"vocab_size": 50304}, batch=16, dtypes=("bf16",), compile=True),  # for a GPU
    )
}
KINDS = {  # by number of processes
    1: ("bare", "bare-kept", "bare-autocast", "deepspeed-zero1", "deepspeed-zero3", "trainer", "dgpt"),
    2: ("apart", "ddp", "deepspeed-zero1", "deepspeed-zero3", "trainer", "dgpt-zero1", "dgpt-zero3", "dgpt-tp2"),
}


def arms_of(processes: int, dtype: str) -> list[Arm]:
    kinds = (kind for kind in KINDS[min(processes, 2)] if kind != "bare-autocast" or dtype == "bf16")
    return [Arm(kind, dtype, processes) for kind in kinds]


def bars_of(processes: int, dtype: str) -> list[Bar]:
    """Ratios within the arms of one group and its anchor (`anchor_of`)."""

    def bar(kind: str, peer: str, least: float | None) -> Bar:
        return Bar(Arm(kind, dtype, processes), Arm(peer, dtype, processes), least)

    if processes == 1:
        bars = [
            bar("dgpt", "bare-kept", 0.98),
            bar("dgpt", "bare", 0.98),
            bar("dgpt", "deepspeed-zero1", None),
            bar("dgpt", "trainer", None),
        ]
        return bars + ([Bar(Arm("dgpt", dtype, 1), anchor_of(), 2.7)] if dtype == "bf16" else [])
    bars = [bar("dgpt-zero1", "deepspeed-zero1", 1.05), bar("dgpt-zero3", "deepspeed-zero3", 1.0),
            bar("dgpt-zero1", "ddp", None), bar("dgpt-zero1", "trainer", None),
            bar("dgpt-tp2", "apart", None)]  # fmt: skip
    if dtype == "fp32":
        bars += [Bar(Arm("dgpt-tp2", dtype, processes), anchor_of(), 1.4),
                 Bar(Arm("apart", dtype, processes), anchor_of(), None)]  # fmt: skip
    return bars


def anchor_of() -> Arm:
    """Runs in every group, for ratios between data types and numbers of processes."""
    return Arm("dgpt", "fp32", 1)


def run_config(arm: Arm, size: Size, rounds: int, steps: int, run_dir: str) -> RunConfig:
    """The run as a dgpt user writes it; the peers take model, batch, rate and logging from it."""
    settings = {
        "run_dir": f'"{run_dir}"',
        **{f"model.{name}": str(value) for name, value in size.model.items()},
        "training.steps": str((rounds + 1) * steps + 1),
        "training.global_batch_size": str(size.batch),
        "training.micro_batch_size": str(size.batch * arm.tp // arm.processes),
        "training.eval_every_steps": "0",
        "training.compile": str(size.compile).lower(),
        "schedule.kind": '"constant"',
        "schedule.warmup_steps": "0",
        "checkpoint.every_steps": "0",
        "logging.every_steps": str(steps),
        "parallel.tp": str(arm.tp),
        "parallel.zero_stage": str(arm.zero_stage),
    }
    return load_config(None, [f"{name}={value}" for name, value in settings.items()])
