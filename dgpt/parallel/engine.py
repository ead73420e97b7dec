"""Engine: what the training loop needs of whatever holds the weights, gradients and optimizer state."""

import warnings
from typing import Any, Protocol

import torch
from torch import Tensor

from dgpt.config import BatchPlan, LoopConfig, RunConfig
from dgpt.errors import UserError
from dgpt.fragments import Fragment
from dgpt.model.gpt import GPT
from dgpt.model.init import initial_weight
from dgpt.parallel.activation import apply_activation_checkpointing
from dgpt.parallel.mesh import Mesh, ParallelDims
from dgpt.parallel.tensor import apply_tensor_parallel, tp_axis


class Engine(Protocol):
    """An optimizer step is loss = engine(...) and engine.backward(loss) for each micro step, then engine.step(lr)."""

    model: GPT

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Mean loss over what this rank is to learn from a batch, given as its `inputs`."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of loss / grad_accum_steps."""

    def step(self, lr: float) -> float:
        """Reduce over ranks, clip, update the weights. Returns the global gradient norm before clipping.

        It is the same on all ranks, and not finite as soon as one rank's gradient is not.
        """

    def fragments(self) -> list[Fragment]:
        """Views of the fp32 weights and the optimizer state on this rank; those not yet there are created as zeros."""

    def loaded(self, steps: int) -> None:
        """Call after writing to the fragments: `steps` optimizer steps have been taken."""


def build_engine(config: RunConfig, plan: BatchPlan, mesh: Mesh, device: torch.device, dtype: torch.dtype) -> Engine:
    """GPT -> tensor parallelism -> weights -> compile -> activation checkpointing -> optimizer and ZeRO."""
    check_engine(config, mesh.dims, dtype)
    model = build_parts(config, mesh)
    if not mesh.distributed and not config.parallel.offload_optimizer:
        from dgpt.parallel.engine_local import LocalEngine

        fill(model, config, mesh, device, dtype=torch.float32)
        prepare_blocks(model, config)
        return LocalEngine(model, config, plan, dtype)
    from dgpt.parallel.engine_zero import ZeroEngine

    return ZeroEngine(model, config, plan, mesh, device, dtype)


def check_engine(config: RunConfig, dims: ParallelDims, dtype: torch.dtype) -> None:
    """Raises UserError for combinations that DeepSpeed would compute wrongly or not at all."""
    parallel = config.parallel
    if dims.tp > 1 and parallel.zero_stage == 0 and dtype != torch.float32:
        raise UserError(
            f"parallel.zero_stage = 0 with parallel.tp = {dims.tp} in {dtype}",
            rule="DeepSpeed's unfused 16 bit optimizer loses the tensor parallel marks, so the gradient norm is wrong",
            fix='set parallel.zero_stage=1, or precision.dtype="fp32"',
        )
    if parallel.zero_extra:
        from dgpt.parallel.engine_zero import check_extra

        check_extra(parallel)
    if dims.world_size > 1 and dims.dp % parallel.zero_hpz_partition_size:
        raise UserError(
            f"parallel.zero_hpz_partition_size = {parallel.zero_hpz_partition_size} with {dims.dp} data parallel ranks",
            rule="the groups of the secondary partition are of one size, so it divides the data parallel ranks",
            fix="set it to the GPUs of a node, or to 1",
        )
    plus = parallel.zero_hpz_partition_size > 1 or parallel.zero_quantized_weights or parallel.zero_quantized_gradients
    if plus and (parallel.zero_stage < 3 or dims.tp > 1):
        raise UserError(
            f"ZeRO++ settings (parallel.zero_hpz_partition_size, zero_quantized_*) with parallel.zero_stage = "
            f"{parallel.zero_stage} and parallel.tp = {dims.tp}",
            rule="only ZeRO 3 reads them, and DeepSpeed groups consecutive ranks for them as if tp were 1",
            fix="set parallel.zero_stage=3 and parallel.tp=1, or leave these settings away",
        )
    if config.training.compile and parallel.zero_stage == 3 and dims.world_size > 1:
        raise UserError(
            "training.compile = true with parallel.zero_stage = 3",
            rule="ZeRO 3 gathers weights in hooks inside the blocks, which torch.compile would trace and compile anew",
            fix="set training.compile=false, or parallel.zero_stage=2 with a larger parallel.tp",
        )
    if parallel.offload_optimizer and dims.world_size == 1:
        raise UserError(
            "parallel.offload_optimizer = true with one process",
            rule="offload goes through ZeRO, which needs a process group",
            fix="start with `--nproc 2` or more, or set parallel.offload_optimizer=false",
        )
    if parallel.offload_optimizer and parallel.zero_stage == 0:
        raise UserError(
            "parallel.offload_optimizer = true with parallel.zero_stage = 0",
            rule="only sharded optimizer state can be offloaded",
            fix="set parallel.zero_stage=1",
        )


def build_parts(config: RunConfig, mesh: Mesh) -> GPT:
    """This rank's tensor parallel part of the model, on the meta device: shapes without memory."""
    with torch.device("meta"):
        model = GPT(config.model)
        model.head.chunk_tokens = config.training.loss_chunk_tokens
        model.head.z_loss = config.training.z_loss
        apply_tensor_parallel(model, mesh, config.parallel.sequence_parallel)
    return model


def fill(model: GPT, config: RunConfig, mesh: Mesh, device: torch.device, dtype: torch.dtype) -> None:
    """Give the parts memory and initial weights, one parameter at a time."""
    for name, parameter in list(model.named_parameters()):
        weight = initial_part(name, parameter, config, mesh, device).to(dtype)
        owner, _, leaf = name.rpartition(".")
        replace_parameter(model.get_submodule(owner), leaf, weight)
    model.tie_weights()


def initial_part(name: str, part: Tensor, config: RunConfig, mesh: Mesh, device: torch.device) -> Tensor:
    """Initial fp32 value of this rank's part of the parameter `name`."""
    axis = tp_axis(name)
    whole = initial_weight(name, whole_shape(name, part.shape, mesh.tp_size), config.model, config.seed, device)
    return whole if axis is None else whole.chunk(mesh.tp_size, axis)[mesh.tp_rank].contiguous()


def whole_shape(name: str, part: torch.Size, tp_size: int) -> torch.Size:
    """Shape of the parameter of which a TP rank has a part of shape `part`."""
    return torch.Size(n * tp_size if axis == tp_axis(name) else n for axis, n in enumerate(part))


def replace_parameter(owner: torch.nn.Module, leaf: str, value: Tensor) -> None:
    """Put memory behind a meta parameter, with its marks and hooks."""
    old = getattr(owner, leaf)
    new = torch.nn.Parameter(value)
    new.__dict__.update(old.__dict__)
    for hook in (old._backward_hooks or {}).values():
        new.register_hook(hook)  # type: ignore[no-untyped-call]
    setattr(owner, leaf, new)


def prepare_blocks(model: GPT, config: LoopConfig) -> None:
    """Compile the blocks if asked, and checkpoint activations around what was compiled."""
    if config.training.compile:
        # torch.compile looks at the gradient of a block's input, and torch warns of it.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        for block in model.blocks:
            block.forward = torch.compile(block.forward)
    apply_activation_checkpointing(model, config.activation_checkpointing)
