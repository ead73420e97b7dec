"""The competitors of benchmarks.train: each trains the same model on the same tokens until its gate ends it.

All take AdamW (fused) at the same rate, betas and decay, clip the gradient norm at 1 and read the loss once a round.
In bf16, `bare` and `ddp` do what dgpt does: a bf16 model, fp32 master weights. `bare-autocast` is the other common way,
and `bare-kept` keeps freed memory as dgpt does on a CPU, so that against it nothing but the loop differs. `apart` is
several bare loops at once, each with its part of the batch, that say nothing to each other: what the machine can give.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from benchmarks.train_gate import Gate
from benchmarks.train_spec import Arm
from dgpt import runtime as processes
from dgpt.config import RunConfig, batch_plan
from dgpt.data.loader import Loader
from dgpt.data.shards import SourceTokens, TokenData
from dgpt.data.tokenizer import Backend, Tokenizer
from dgpt.model.gpt import GPT
from dgpt.model.init import build_model
from dgpt.parallel.mesh import ParallelDims
from dgpt.pretrain import Pretraining
from dgpt.runtime import Runtime
from dgpt.setup import PretrainSetup
from dgpt.train.metrics import Monitor, StepMetrics
from dgpt.train.optimizer import make_optimizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def join(arm: Arm) -> Runtime:
    """This rank in its process group. dgpt starts as its users start it; what that sets, the peers do not get."""
    if arm.kind.startswith("dgpt"):
        return processes.start(timeout_seconds=600)
    rank, cuda = processes.rank(), torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    runtime = Runtime(rank, rank, arm.processes, device)
    processes.join(runtime, timeout_seconds=600)
    return runtime


def run(arm: Arm, config: RunConfig, runtime: Runtime, tokens: Path, gate: Gate) -> None:
    """Train as `arm` until the gate raises Ended."""
    if arm.kind.startswith("dgpt"):
        _dgpt(arm, config, runtime, tokens, gate)
    elif arm.kind == "trainer":
        _trainer(arm, config, runtime, tokens, gate)
    elif arm.kind.startswith("deepspeed"):
        _deepspeed(arm, config, runtime, tokens, gate)
    else:
        _bare(arm, config, runtime, tokens, gate)


def _batches(config: RunConfig, runtime: Runtime, path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Random windows, as the loop of nanoGPT draws them: (B, T) tokens and targets of this rank."""
    data, length = np.memmap(path, np.uint16, "r"), config.model.seq_len
    draw = np.random.default_rng(runtime.rank)
    rows = batch_plan(config, runtime.world_size).micro_batch_size
    while True:
        starts = draw.integers(0, len(data) - length - 1, rows)
        window = np.stack([data[start : start + length + 1] for start in starts]).astype(np.int64)
        ids = torch.from_numpy(window).to(runtime.device)
        yield ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def _new_model(config: RunConfig, runtime: Runtime) -> GPT:
    model = build_model(config.model, config.seed, runtime.device)
    model.head.chunk_tokens = config.training.loss_chunk_tokens
    return model


def _bare(arm: Arm, config: RunConfig, runtime: Runtime, tokens: Path, gate: Gate) -> None:
    """A loop of 15 lines in plain torch, with DistributedDataParallel where there are more processes."""
    if arm.kind == "bare-kept":
        processes.keep_freed_memory()
    model = _new_model(config, runtime)
    masters: list[Tensor] = []
    if arm.dtype == "bf16" and arm.kind != "bare-autocast":
        masters = [parameter.detach().clone() for parameter in model.parameters()]
        model.bfloat16()
    weights = list(model.parameters())
    names = [name for name, _ in model.named_parameters()]
    optimizer = make_optimizer(zip(names, masters or weights, strict=True), config.optimizer)
    step_model: nn.Module = torch.compile(model) if config.training.compile else model  # type: ignore[assignment]
    if runtime.world_size > 1 and arm.kind != "apart":
        step_model = nn.parallel.DistributedDataParallel(step_model)
    for step, (inputs, targets) in enumerate(_batches(config, runtime, tokens)):
        gate(step)
        with torch.autocast(runtime.device.type, torch.bfloat16, enabled=arm.kind == "bare-autocast"):
            loss = step_model(inputs, targets)
        loss.backward()
        for master, weight in zip(masters, weights, strict=False):
            master.grad, weight.grad = weight.grad.float(), None  # type: ignore[union-attr]
        clip_grad_norm_(masters or weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if masters:
            with torch.no_grad():
                torch._foreach_copy_(weights, masters)
        if (step + 1) % config.logging.every_steps == 0:
            gate.saw(loss.item())


def _deepspeed(arm: Arm, config: RunConfig, runtime: Runtime, tokens: Path, gate: Gate) -> None:
    """`deepspeed.initialize` with the settings that a user must give, and DeepSpeed's defaults for the rest."""
    import deepspeed

    model = _new_model(config, runtime)
    ds_config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.training.micro_batch_size,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": arm.dtype == "bf16"},
        "zero_optimization": {"stage": arm.zero_stage},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = make_optimizer(model.named_parameters(), config.optimizer)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)[0]
    for step, (inputs, targets) in enumerate(_batches(config, runtime, tokens)):
        gate(step)
        loss = engine(inputs, targets)
        engine.backward(loss)
        engine.step()
        if (step + 1) % config.logging.every_steps == 0:
            gate.saw(loss.item())


def _trainer(arm: Arm, config: RunConfig, runtime: Runtime, tokens: Path, gate: Gate) -> None:
    """transformers.Trainer with a GPT2LMHeadModel of the same size."""
    import transformers as hf

    m, o = config.model, config.optimizer

    class Windows(torch.utils.data.Dataset[dict[str, Tensor]]):
        data = np.memmap(tokens, np.uint16, "r")

        def __len__(self) -> int:
            return len(self.data) // m.seq_len

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            window = torch.from_numpy(self.data[index * m.seq_len : (index + 1) * m.seq_len].astype(np.int64))
            return {"input_ids": window, "labels": window}

    class Gated(hf.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            gate(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" in logs:
                gate.saw(float(logs["loss"]))

    model = hf.GPT2LMHeadModel(hf.GPT2Config(
        vocab_size=m.padded_vocab_size, n_positions=m.seq_len, n_embd=m.n_embd, n_layer=m.n_layer, n_head=m.n_head,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    ))  # fmt: skip
    cpu = runtime.device.type == "cpu"
    arguments = hf.TrainingArguments(
        output_dir=config.run_dir, use_cpu=cpu, ddp_backend="gloo" if cpu else "nccl", bf16=arm.dtype == "bf16",
        torch_compile=config.training.compile, per_device_train_batch_size=config.training.micro_batch_size,
        max_steps=config.training.steps, optim="adamw_torch_fused", learning_rate=o.lr, lr_scheduler_type="constant",
        adam_beta1=o.betas[0], adam_beta2=o.betas[1], weight_decay=o.weight_decay, max_grad_norm=1.0,
        logging_steps=config.logging.every_steps, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    hf.Trainer(model=model, args=arguments, train_dataset=Windows(), callbacks=[Gated()]).train()


def _dgpt(arm: Arm, config: RunConfig, runtime: Runtime, tokens: Path, gate: Gate) -> None:
    """`dgpt pretrain` from its components on: loop, loader, monitor with TensorBoard, stopper, checkpointer."""
    dims = ParallelDims(runtime.world_size, config.parallel.tp)
    plan = batch_plan(config, dims.dp)
    data = _token_data(tokens, config.model.vocab_size)
    loader = Loader(data, seq_len=config.model.seq_len, seed=config.seed, plan=plan,
                    dp_rank=dims.dp_rank(runtime.rank), reset_at_document=False)  # fmt: skip
    setup = PretrainSetup(config=config, dims=dims, plan=plan, dtype=DTYPES[arm.dtype], train_data=data, val_data=data,
                  loader=loader, tokenizer=_tokenizer(config.model.vocab_size), data_hash="")  # fmt: skip
    Path(config.run_dir).mkdir(exist_ok=True)
    _Gated(setup, runtime, gate).run()


class _Gated(Pretraining):
    """The real thing, stopped at the gate before each step."""

    def __init__(self, setup: PretrainSetup, runtime: Runtime, gate: Gate) -> None:
        super().__init__(setup, runtime, lease=None)
        self.gate = gate
        step = setup.loader.step

        def gated(number: int) -> Iterator[Any]:
            gate(number)
            return step(number)

        setup.loader.step = gated  # type: ignore[method-assign]

    def _monitor(self) -> Monitor:
        monitor = super()._monitor()
        log_step = monitor.log_step

        def seen(metrics: StepMetrics) -> None:
            self.gate.saw(metrics.loss)
            log_step(metrics)

        monitor.log_step = seen  # type: ignore[method-assign]
        return monitor


def _token_data(path: Path, vocab_size: int) -> TokenData:
    shard = np.memmap(path, np.uint16, "r")
    source = SourceTokens("random", len(shard), 1, len(shard), [shard], [])
    return TokenData(path.parent, "train", vocab_size, 0, np.dtype("<u2"), "", (source,), (0.0,))


def _tokenizer(vocab_size: int) -> Tokenizer:
    """One that is only saved: the tokens are random."""
    table = [b"<|endoftext|>", *(b"%d" % i for i in range(1, vocab_size))]
    return Tokenizer(Backend("tokenizer.json", b"{}", lambda texts: [[0] for _ in texts], table, {"<|endoftext|>": 0},
                             re.compile("."), False, {}, None), "<|endoftext|>")  # fmt: skip
