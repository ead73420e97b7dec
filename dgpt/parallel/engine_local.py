"""One process in plain torch: nothing to shard, no process group, no DeepSpeed. The reference of the parity tests."""

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dgpt.config import BatchPlan, RunConfig
from dgpt.fragments import Fragment
from dgpt.model.gpt import GPT
from dgpt.train.optimizer import make_optimizer


class LocalEngine:
    """fp32 weights in the optimizer; with a 16 bit compute type the model has its own rounded copy of them."""

    def __init__(self, model: GPT, config: RunConfig, plan: BatchPlan, dtype: torch.dtype) -> None:
        self.model = model
        self.accum = plan.grad_accum_steps
        self.grad_clip = config.optimizer.grad_clip
        self.mixed = dtype != torch.float32
        self.masters: dict[str, Tensor] = dict(model.named_parameters())
        if self.mixed:
            model.to(dtype)  # the masters start from the rounded weights, as under ZeRO
            self.masters = {name: weight.detach().float() for name, weight in model.named_parameters()}
            for name, parameter in model.named_parameters():
                _accumulate_into(parameter, self.masters[name])
        self.optimizer = make_optimizer(self.masters.items(), config.optimizer)

    def __call__(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        return self.model(tokens, targets, documents)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        (loss / self.accum if self.accum > 1 else loss).backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> float:
        grads = [master.grad for master in self.masters.values() if master.grad is not None]
        norm = get_total_norm(grads, foreach=True)
        if self.grad_clip:
            clip_grads_with_norm_(self.masters.values(), self.grad_clip, norm, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.mixed:
            self._round_weights()
        return float(norm)

    def _round_weights(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(list(self.model.parameters()), list(self.masters.values()))

    def fragments(self) -> list[Fragment]:
        result = []
        for name, master in self.masters.items():
            state = self.optimizer.state[master]
            if not state:
                zeros = {key: torch.zeros_like(master) for key in ("exp_avg", "exp_avg_sq")}
                state.update(step=torch.zeros((), dtype=torch.float32, device=master.device), **zeros)
            for key, tensor in (("weight", master.data), *state.items()):
                if key != "step":
                    result.append(Fragment(name, key, tuple(master.shape), None, 0, 1, 0, tensor.flatten()))
        return result

    def loaded(self, steps: int) -> None:
        for master in self.masters.values():
            self.optimizer.state[master]["step"].fill_(steps)
        if self.mixed:
            self._round_weights()


def _accumulate_into(parameter: torch.nn.Parameter, master: Tensor) -> None:
    """Add each new 16 bit gradient to the fp32 one of the master, and free it at once."""

    def move(p: Tensor) -> None:
        if p.grad is not None:
            master.grad = p.grad.float() if master.grad is None else master.grad.add_(p.grad)
            p.grad = None

    parameter.register_post_accumulate_grad_hook(move)  # type: ignore[no-untyped-call]
