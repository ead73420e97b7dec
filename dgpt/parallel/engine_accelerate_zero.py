"""Fine-tuning what does not fit on one device: DeepSpeed ZeRO 1 to 3, set up by accelerate's DeepSpeed plugin.

Once it is set up the engine is DeepSpeed's, so steps and fragments are those of pretraining.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn

from dgpt.config import BatchPlan, FinetuneConfig, ParallelConfig, RunConfig
from dgpt.model.gpt import GPT
from dgpt.parallel.deepspeed_config import deepspeed_config
from dgpt.parallel.engine_accelerate import make_accelerator
from dgpt.parallel.engine_zero import ZeroEngine, import_deepspeed
from dgpt.parallel.mesh import Mesh
from dgpt.train.optimizer import make_optimizer


class AccelerateZeroEngine(ZeroEngine):
    def __init__(
        self, model: GPT, trainable: Mapping[str, nn.Parameter], config: FinetuneConfig, plan: BatchPlan, mesh: Mesh,
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        """trainable: the parameters to learn, by the names that checkpoints give them."""
        import_deepspeed()
        self.model, self.mesh, self.stage, self.clips = model, mesh, config.parallel.zero_stage, False
        self.names: dict[nn.Parameter, str] = {parameter: name for name, parameter in trainable.items()}
        self.shapes = {name: parameter.shape for name, parameter in trainable.items()}
        elements = sum(parameter.numel() for parameter in model.parameters())
        settings = _deepspeed_config(config, plan, dtype, elements)
        accelerator = make_accelerator(device, dtype, deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings))
        accelerator.prepare(model, make_optimizer(trainable.items(), config.optimizer))
        self.engine: Any = accelerator.deepspeed_engine_wrapped.engine
        self.accelerator = accelerator

    def __call__(self, weight: Tensor, *inputs: Tensor | None) -> Tensor:
        """weight: of this micro batch in the mean loss of the step."""
        return self.engine(*inputs) * weight  # type: ignore[no-any-return]

    def tp_axis(self, name: str) -> int | None:
        """No parameter is cut: every process computes with all of it."""
        return None


def _deepspeed_config(config: FinetuneConfig, plan: BatchPlan, dtype: torch.dtype, elements: int) -> dict[str, Any]:
    p = config.parallel
    parallel = ParallelConfig(zero_stage=p.zero_stage, offload_optimizer=p.offload_optimizer)
    return deepspeed_config(RunConfig().model_copy(update={"parallel": parallel, "optimizer": config.optimizer}), plan,
                            dtype, elements)  # fmt: skip
