"""The engine of fine-tuning, on Hugging Face accelerate: one process, or several that each hold the whole model (DDP).

Mixed precision is autocast over fp32 weights. What does not train (the base under LoRA) has no state and no fragment.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from dgpt.config import BatchPlan, FinetuneConfig
from dgpt.fragments import Fragment
from dgpt.model.gpt import GPT
from dgpt.parallel.mesh import Mesh
from dgpt.train.optimizer import make_optimizer


class AccelerateEngine:
    def __init__(
        self, model: GPT, trainable: Mapping[str, nn.Parameter], config: FinetuneConfig, plan: BatchPlan, mesh: Mesh,
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        """trainable: the parameters to learn, by the names that checkpoints give them."""
        self.model, self.trainable, self.mesh = model, dict(trainable), mesh
        self.accum, self.micro_step = plan.grad_accum_steps, 0
        self.grad_clip = config.optimizer.grad_clip or float("inf")
        self.accelerator = make_accelerator(device, dtype, gradient_accumulation_steps=self.accum)
        optimizer = make_optimizer(self.trainable.items(), config.optimizer)
        self.wrapped, self.optimizer = self.accelerator.prepare(model, optimizer)
        self._unsynced = ExitStack()  # from a forward to its backward, while gradients are not reduced

    def __call__(self, weight: Tensor, *inputs: Tensor | None) -> Tensor:
        """weight: of this micro batch in the mean loss of the step."""
        if torch.is_grad_enabled() and self.micro_step < self.accum - 1:
            self._unsynced.enter_context(self.accelerator.no_sync(self.wrapped))
        return self.wrapped(*inputs) * weight  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)
        self._unsynced.close()
        self.micro_step += 1

    def step(self, lr: float) -> float:
        self.micro_step = 0
        norm = self.accelerator.clip_grad_norm_(self.trainable.values(), self.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def fragments(self) -> list[Fragment]:
        result = []
        for name, parameter in self.trainable.items():
            for key, tensor in (("weight", parameter.data), *self._state(parameter).items()):
                if key != "step":
                    result.append(Fragment(name, key, tuple(parameter.shape), None, 0, 1, 0, tensor.flatten(),
                                           self.mesh.dp_rank, self.mesh.dp_size))  # fmt: skip
        return result

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """AdamW's state of a parameter, created as zeros if no step has been taken."""
        state: dict[str, Tensor] = self.optimizer.state[parameter]
        if not state:
            zeros = {key: torch.zeros_like(parameter, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            state.update(step=torch.zeros((), dtype=torch.float32, device=parameter.device), **zeros)
        return state

    def loaded(self, steps: int) -> None:
        for parameter in self.trainable.values():
            self._state(parameter)["step"].fill_(steps)


def make_accelerator(device: torch.device, dtype: torch.dtype, **settings: Any) -> Accelerator:
    """accelerate keeps what it knows of the processes for the whole process; here each run starts anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        mixed_precision="bf16" if dtype == torch.bfloat16 else "no",
        cpu=device.type == "cpu" and "deepspeed_plugin" not in settings,  # with it accelerate passes DeepSpeed over
        **settings,
    )  # fmt: skip
