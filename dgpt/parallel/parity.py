"""Does every topology compute the same? The same steps at several ZeRO stages and TP degrees, against one process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dgpt.config import RunConfig, batch_plan
from dgpt.parallel.engine import Engine, build_engine
from dgpt.parallel.mesh import Mesh, ParallelDims
from dgpt.runtime import Runtime


@dataclass(frozen=True)
class Curve:
    """Loss (mean over the global batch) and gradient norm of each step."""

    losses: list[float]
    grad_norms: list[float]

    def distance(self, other: "Curve") -> float:
        """Largest relative difference of any loss or norm."""
        pairs = zip(self.losses + self.grad_norms, other.losses + other.grad_norms, strict=True)
        return max(abs(a - b) / abs(b) for a, b in pairs)


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
    dims = ParallelDims(runtime.world_size, config.parallel.tp)
    mesh = Mesh(dims, runtime.rank)
    plan = batch_plan(config, dims.dp)
    engine = build_engine(config, plan, mesh, runtime.device, dtype)
    curve = Curve([], [])
    for step in range(steps):
        loss, norm = _step(engine, config, mesh, runtime.device, step)
        curve.losses.append(loss)
        curve.grad_norms.append(norm)
    return curve


def _step(engine: Engine, config: RunConfig, mesh: Mesh, device: torch.device, step: int) -> tuple[float, float]:
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
        if world_size % tp or config.model.kv_heads % tp:
            continue
        for stage, sequence_parallel in _stages(tp):
            yield topology(config, tp, stage, sequence_parallel)


def _stages(tp: int) -> Sequence[tuple[int, bool]]:
    return [(stage, sp) for stage in range(4) for sp in ((False, True) if tp > 1 else (False,))]
