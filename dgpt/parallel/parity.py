"""Does every topology compute the same? The same steps at several ZeRO stages and TP degrees, against one process."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dgpt import runtime as processes
from dgpt.config import ParallelConfig, RunConfig, batch_plan
from dgpt.errors import UserError
from dgpt.parallel.engine import Engine, build_engine
from dgpt.parallel.mesh import Mesh, ParallelDims
from dgpt.runtime import Runtime


@dataclass(frozen=True)
class Curve:
    """Loss (mean over the global batch) and gradient norm of each step."""

    losses: list[float]
    grad_norms: list[float]

    def distance(self, other: "Curve") -> float:
        """Largest relative difference of any loss or norm; infinite if one is not finite."""
        pairs = zip(self.losses + self.grad_norms, other.losses + other.grad_norms, strict=True)
        distances = [abs(a - b) / abs(b) for a, b in pairs]
        return max(distances) if all(map(math.isfinite, distances)) else math.inf


def topology(config: RunConfig, tp: int, zero_stage: int, sequence_parallel: bool = False) -> RunConfig:
    """The same run at another topology."""
    parallel = config.parallel.model_copy(
        update={"tp": tp, "zero_stage": zero_stage, "sequence_parallel": sequence_parallel}
    )
    return RunConfig.model_validate(config.model_copy(update={"parallel": parallel}).model_dump())


def random_batch(config: RunConfig, sample: int) -> torch.Tensor:
    """Tokens (seq_len + 1,) of a sample, as a function of its number alone."""
    generator = torch.Generator().manual_seed(config.seed + sample)
    return torch.randint(config.model.vocab_size, (config.model.seq_len + 1,), generator=generator)


def run_curve(config: RunConfig, runtime: Runtime, steps: int, dtype: torch.dtype) -> Curve:
    """Train `steps` steps on random tokens over all ranks of `runtime`, with the config's parallelism."""
    mesh = Mesh(
        ParallelDims(runtime.world_size, config.parallel.tp), runtime.rank, config.parallel.first_step_timeout_seconds
    )
    engine = build_engine(config, batch_plan(config, mesh.dp_size), mesh, runtime.device, dtype)
    pairs = [random_step(engine, config, mesh, runtime.device, step) for step in range(steps)]
    return Curve([loss for loss, _ in pairs], [norm for _, norm in pairs])


def random_step(engine: Engine, config: RunConfig, mesh: Mesh, device: torch.device, step: int) -> tuple[float, float]:
    """One optimizer step on random tokens: its loss over the global batch, and the gradient norm."""
    t, plan = config.training, batch_plan(config, mesh.dp_size)
    total = torch.zeros((), device=device)
    for micro_step in range(plan.grad_accum_steps):
        first = step * t.global_batch_size + (micro_step * mesh.dp_size + mesh.dp_rank) * t.micro_batch_size
        tokens = torch.stack([random_batch(config, first + i) for i in range(t.micro_batch_size)]).to(device)
        torch.manual_seed(config.seed + step * plan.grad_accum_steps + micro_step)
        loss = engine(tokens[:, :-1], tokens[:, 1:])
        engine.backward(loss)
        total += loss.detach() / plan.grad_accum_steps
    if mesh.distributed:
        dist.all_reduce(total, group=mesh.dp_group)
    return float(total) / mesh.dp_size, engine.step(config.optimizer.lr)


def topologies(world_size: int, config: RunConfig) -> Iterator[RunConfig]:
    """Every TP degree that divides the world and the model, every ZeRO stage, with and without sequence parallelism."""
    for tp in range(1, world_size + 1):
        sizes = (world_size, config.model.seq_len, *config.tp_sizes.values())
        if any(size % tp for size in sizes):
            continue
        for stage, sequence_parallel in _stages(tp):
            yield topology(config, tp, stage, sequence_parallel)


def _stages(tp: int) -> Sequence[tuple[int, bool]]:
    return [(stage, sp) for stage in range(4) for sp in ((False, True) if tp > 1 else (False,))]


def compare(config: RunConfig, steps: int, tolerance: float) -> bool:
    """Run every topology of this world in fp32 and print a table; whether all are within `tolerance` of one process."""
    runtime = processes.identify()
    config = _comparable(config)
    _check(config, runtime)
    processes.join(runtime, config.parallel.first_step_timeout_seconds)
    alone = Runtime(rank=0, local_rank=0, world_size=1, device=runtime.device)
    reference = run_curve(topology(config, 1, 0), alone, steps, torch.float32)
    rows = [(t.parallel, _measure(t, runtime, steps, reference)) for t in topologies(runtime.world_size, config)]
    processes.finish()
    if runtime.is_main:
        _print_table(rows, runtime.world_size, steps, tolerance)
    return all(distance <= tolerance for _, distance in rows)


def _measure(config: RunConfig, runtime: Runtime, steps: int, reference: Curve) -> float:
    return run_curve(config, runtime, steps, torch.float32).distance(reference)


def _comparable(config: RunConfig) -> RunConfig:
    """Without what one process cannot do (offload), ZeRO 3 cannot (compile), or draws other numbers (dropout).

    The tokens are random, so no data need be prepared.
    """
    updates: dict[str, dict[str, object]] = {
        "model": {"dropout": 0.0, "vocab_size": config.model.vocab_size or config.tokenizer.vocab_size},
        "training": {"compile": False},
        "parallel": {"offload_optimizer": False, "zero_hpz_partition_size": 1, "zero_quantized_weights": False,
                     "zero_quantized_gradients": False},
    }  # fmt: skip
    parts = {name: getattr(config, name).model_copy(update=values) for name, values in updates.items()}
    return config.model_copy(update=parts)


def _check(config: RunConfig, runtime: Runtime) -> None:
    """Raises UserError if a topology cannot split the batch, or there is only one process."""
    if runtime.world_size == 1:
        raise UserError("parity with one process", rule="one process is the reference; there must be others to compare",
                        fix="add --nproc 4, or start it on a machine with several GPUs")  # fmt: skip
    for t in topologies(runtime.world_size, config):
        batch_plan(t, runtime.world_size // t.parallel.tp)


def _print_table(rows: list[tuple[ParallelConfig, float]], world_size: int, steps: int, tolerance: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{steps} steps in fp32, largest relative difference of loss and gradient norm to one process")
    for column in ("dp", "tp", "ZeRO", "sequence parallel", "difference", f"within {tolerance:g}"):
        table.add_column(column, justify="right")
    for parallel, distance in rows:
        table.add_row(str(world_size // parallel.tp), str(parallel.tp), str(parallel.zero_stage),
                      "yes" if parallel.sequence_parallel else "no", f"{distance:.1e}",
                      "yes" if distance <= tolerance else "NO")  # fmt: skip
    Console().print(table)
