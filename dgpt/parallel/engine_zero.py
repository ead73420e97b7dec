"""ZeRO 0 to 3 through DeepSpeed: initialisation without ever holding the whole model, one step, and the state's views.

DeepSpeed's own checkpoints are not used; `fragments` reaches the fp32 weights and optimizer state where they lie.
"""

import warnings
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from dgpt.config import BatchPlan, ParallelConfig, RunConfig
from dgpt.errors import UserError
from dgpt.fragments import Fragment
from dgpt.model.gpt import GPT
from dgpt.parallel import engine as build
from dgpt.parallel.deepspeed_config import deepspeed_config, zero_config
from dgpt.parallel.mesh import Mesh
from dgpt.parallel.tensor import tp_axis
from dgpt.train.optimizer import make_optimizer


def import_deepspeed() -> Any:
    """DeepSpeed, without what it would compile before the first step: its shared memory collective on a CPU, and Muon,
    which dgpt does not use, and for which torch would import its compiler (2 s on each rank).
    """
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime import compiler

    with patch.object(compiler, "compile", lambda: lambda function: function):
        import deepspeed.runtime.zero.muon.original_muon
    # It calls torch's collectives by names that torch 2.13 renamed.
    warnings.filterwarnings("ignore", r"`torch.distributed.\w+` is deprecated", FutureWarning)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def check_extra(parallel: ParallelConfig) -> None:
    """Raises UserError unless DeepSpeed takes [parallel.zero_extra] beside the keys that dgpt derives itself."""
    from pydantic import ValidationError

    zero = zero_config(parallel, parameters=1, dp_size=1)
    import_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"parallel.zero_extra.{'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg'].lower()}",
            rule="zero_extra holds keys of DeepSpeed's zero_optimization, with values that it takes",
            fix="correct the key or the value (deepspeed.ai/docs/config-json, ZeRO optimizations)",
        ) from None


class ZeroEngine:
    def __init__(
        self, model: GPT, config: RunConfig, plan: BatchPlan, mesh: Mesh, device: torch.device, dtype: torch.dtype
    ) -> None:
        deepspeed = import_deepspeed()
        deepspeed.init_distributed(verbose=False)
        self.model, self.mesh, self.stage = model, mesh, config.parallel.zero_stage
        self.clips = self.stage == 0 and dtype == torch.float32
        self.grad_clip = config.optimizer.grad_clip or float("inf")
        self.shapes = {name: part.shape for name, part in model.named_parameters()}
        ds_config = deepspeed_config(config, plan, dtype, sum(shape.numel() for shape in self.shapes.values()))
        if self.stage == 3:
            _fill_partitioned(deepspeed, model, config, mesh, device, dtype, ds_config)
        else:
            build.fill(model, config, mesh, device, dtype)
        build.prepare_blocks(model, config)
        optimizer = make_optimizer(model.named_parameters(), config.optimizer)
        self.names: dict[nn.Parameter, str] = {parameter: name for name, parameter in model.named_parameters()}
        self.engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config, mpu=mesh)[0]
        _undo_initial_step(self.engine.optimizer)

    def __call__(self, *inputs: Any) -> Tensor:
        return self.engine(*inputs)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # only counts the micro step

    def step(self, lr: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        norm = self._clip() if self.clips else None
        self.engine.step()
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    def _clip(self) -> Tensor:
        """ZeRO 0 in fp32: the gradients are plain and summed by now; counts each part of a cut parameter once."""
        from deepspeed.runtime.utils import clip_grad_norm_

        return clip_grad_norm_(self.model.parameters(), self.grad_clip, mpu=self.mesh)  # type: ignore[no-any-return]

    def fragments(self) -> list[Fragment]:
        states = {0: _replicated_states, 3: _stage3_states}.get(self.stage, _stage12_states)
        return [self._fragment(*found) for found in states(self.engine, self.mesh, self.names)]

    def _fragment(self, parameter_name: str, state: str, start: int, tensor: Tensor) -> Fragment:
        axis, mesh = self.tp_axis(parameter_name), self.mesh
        shape = tuple(n * mesh.tp_size if at == axis else n for at, n in enumerate(self.shapes[parameter_name]))
        replica, replicas = (mesh.dp_rank, mesh.dp_size) if self.stage == 0 else (0, 1)
        if axis is None:
            replica, replicas = replica * mesh.tp_size + mesh.tp_rank, replicas * mesh.tp_size
        tp_rank, tp_size = (mesh.tp_rank, mesh.tp_size) if axis is not None else (0, 1)
        return Fragment(parameter_name, state, shape, axis, tp_rank, tp_size, start, tensor, replica, replicas)

    def tp_axis(self, name: str) -> int | None:
        """The axis along which tensor parallelism cuts a parameter."""
        return tp_axis(name)

    def loaded(self, steps: int) -> None:
        optimizer = self.engine.optimizer
        for state in _inner(optimizer).state.values():
            state["step"].fill_(steps)
        if self.stage == 3:
            for low, high in zip(
                optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True
            ):
                low.data.copy_(high.data)
            optimizer.invalidate_secondary_tensor()  # ZeRO++: the copy within the node is of the weights before
            _refresh_persistent(optimizer)
        elif self.stage > 0:
            optimizer.update_lp_params()
        for low, high in _unfused(optimizer):
            low.data.copy_(high.data)


def _fill_partitioned(
    deepspeed: Any,
    model: GPT,
    config: RunConfig,
    mesh: Mesh,
    device: torch.device,
    dtype: torch.dtype,
    ds_config: dict[str, Any],
) -> None:
    """Create, initialise and partition one parameter after the other: no rank ever holds more than one whole one."""
    init = deepspeed.zero.Init(
        data_parallel_group=mesh.dp_group,
        mem_efficient_linear=False,
        dtype=dtype,
        config_dict_or_path=ds_config,
        mpu=mesh,
    )
    for name, part in list(model.named_parameters()):
        weight = build.initial_part(name, part, config, mesh, device).to(dtype)
        owner, _, leaf = name.rpartition(".")
        build.replace_parameter(model.get_submodule(owner), leaf, weight)
        parameter: Any = model.get_parameter(name)
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()
    model.tie_weights()


def _undo_initial_step(optimizer: Any) -> None:
    """DeepSpeed's unfused 16 bit optimizer (ZeRO 0) takes a step with zero gradients to create the states.

    AdamW decays the weights in it and counts it, so that the first real step would be half as long.
    """
    for low, high in _unfused(optimizer):
        high.data.copy_(low.data)
        _inner(optimizer).state.pop(high, None)


def _unfused(optimizer: Any) -> list[tuple[Tensor, Tensor]]:
    """Each 16 bit parameter with its fp32 copy, for ZeRO 0 in 16 bit; else empty."""
    if not hasattr(optimizer, "fp32_groups"):
        return []
    groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return [pair for lows, highs in groups for pair in zip(lows, highs, strict=True)]


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The AdamW inside DeepSpeed's wrapper (ZeRO 0 in fp32 has none)."""
    return getattr(optimizer, "optimizer", optimizer)  # type: ignore[no-any-return]


def _with_state(optimizer: Any, flat: Tensor) -> dict[str, Tensor]:
    """AdamW's state of `flat`, created as zeros if no step has been taken."""
    state: dict[str, Tensor] = _inner(optimizer).state[flat]
    if not state:
        zeros = {key: torch.zeros_like(flat, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
        state.update(step=torch.zeros((), dtype=torch.float32, device=flat.device), **zeros)
    return state


Names = dict[nn.Parameter, str]  # of what is trained
Found = Iterator[tuple[str, str, int, Tensor]]  # parameter, state, start in the TP part, view


def _replicated_states(engine: Any, mesh: Mesh, names: Names) -> Found:
    """ZeRO 0: every DP rank has all; in 16 bit DeepSpeed keeps fp32 copies beside the parameters."""
    optimizer = engine.optimizer
    masters: dict[Tensor, Tensor] = dict(_unfused(optimizer))
    for parameter, name in names.items():
        master = masters.get(parameter, parameter)
        for key, tensor in (("weight", master), *_with_state(optimizer, master).items()):
            if key != "step":
                yield name, key, 0, tensor.data.flatten()


def _stage12_states(engine: Any, mesh: Mesh, names: Names) -> Found:
    """ZeRO 1 and 2: each rank has a flat partition of each group, linked to ranges of the parameters."""
    optimizer = engine.optimizer
    for flat in optimizer.single_partition_of_fp32_groups:
        _with_state(optimizer, flat)
    optimizer._hp_optimizer_states_linked = False  # with several groups the first link leaves out later groups
    optimizer._lazy_init_hp_params_optimizer_state()
    for parameter, name in names.items():
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            continue
        for key in (None, *mapping.get_optim_state_keys()):
            yield name, key or "weight", mapping.lp_fragment_address.start, mapping.get_hp_fragment(key).data


def _stage3_states(engine: Any, mesh: Mesh, names: Names) -> Found:
    """ZeRO 3: rank r has elements [r * n, (r + 1) * n) of each parameter, the last one padded."""
    optimizer = engine.optimizer
    for parameter, name in names.items():
        group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
        flat = optimizer.fp32_partitioned_groups_flat[group]
        start = mesh.dp_rank * parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        count = min(padded, parameter.ds_numel - start)  # type: ignore[attr-defined]
        for key, tensor in (("weight", flat), *_with_state(optimizer, flat).items()):
            if key != "step" and count > 0:
                yield name, key, start, tensor.data.narrow(0, offset, count)


def _refresh_persistent(optimizer: Any) -> None:
    """Small parameters stay gathered under ZeRO 3; gather them again from the partitions just written."""
    persistent = optimizer.persistent_parameters
    if persistent:
        for parameter in persistent:
            parameter.partition(has_been_updated=False)
        persistent[0].all_gather(persistent)
