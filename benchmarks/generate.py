"""Tokens per second of `dgpt` and of `transformers.generate` on the same weights: `python -m benchmarks.generate`.

Both decode the same prompts greedily and must give the same tokens, in turn (A B, B A, ...) in one process; a number is
the median over the rounds, a ratio the median of the ratios within a round. Prompts of a batch differ in length, which
transformers pads on the left. Neither compiles. Bar: dgpt / transformers at least 1.0, at batch 1 and 8.
--clock cpu counts CPU time, for a machine that others use as well.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from dgpt.config import ModelConfig
from dgpt.model.flops import parameter_count
from dgpt.model.generate import generate
from dgpt.model.gpt import GPT
from dgpt.model.sampling import Sampling
from tests.unit.model.test_parity import hugging_face_gpt2, hugging_face_llama, random_model

BAR = 1.0
SMALL = {"n_layer": 6, "n_head": 6, "n_embd": 384, "seq_len": 1024, "vocab_size": 8192}
LARGE = {"n_layer": 12, "n_head": 12, "n_embd": 768, "seq_len": 1024, "vocab_size": 50304}
MODELS = {
    "gpt2 small": ModelConfig(shape="gpt2", **SMALL),
    "llama small": ModelConfig(shape="llama", n_kv_head=2, **SMALL),
    "gpt2 124M": ModelConfig(shape="gpt2", **LARGE),
    "llama 124M": ModelConfig(shape="llama", n_kv_head=4, **LARGE),
}
DRAWING = {
    "greedy": Sampling(temperature=0),
    "top-p 0.9": Sampling(temperature=0.8, top_p=0.9),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Arm = Callable[[], list[list[int]]]


def ours(model: GPT, prompts: list[list[int]], settings: Sampling) -> list[list[int]]:
    return [sample.tokens for sample in generate(model, prompts, settings)]


def theirs(model: nn.Module, prompts: list[list[int]], settings: Sampling) -> list[list[int]]:
    """As their documentation batches: padded on the left, and a mask."""
    longest, new = max(map(len, prompts)), settings.max_new_tokens
    padding = [longest - len(prompt) for prompt in prompts]
    tokens = torch.tensor([[0] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
    chosen: dict[str, object] = {"do_sample": False}
    if settings.temperature:
        chosen = {"do_sample": True, "temperature": settings.temperature, "top_k": settings.top_k,
                  "top_p": settings.top_p}  # fmt: skip
    out: Tensor = model.generate(  # type: ignore[operator]
        tokens, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, pad_token_id=0, **chosen
    )
    return out[:, longest:].tolist()


def measure(
    arms: tuple[Arm, Arm], tokens: int, rounds: int, clock: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Tokens/s of each round of both arms, which swap places every round."""
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for arm in (0, 1) if number % 2 == 0 else (1, 0):
            start = clock()
            arms[arm]()
            rates[arm].append(tokens / (clock() - start))
    return rates


def compare(name: str, batch: int, options: argparse.Namespace) -> None:
    config = MODELS[name]
    model = random_model(config)
    other = (hugging_face_gpt2 if config.shape == "gpt2" else hugging_face_llama)(model)
    lengths = [max(1, options.prompt_tokens * (row + 1) // batch) for row in range(batch)]
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
    for label in options.drawing:
        settings = replace(DRAWING[label], max_new_tokens=options.new_tokens)
        arms = (partial(ours, model, prompts, settings), partial(theirs, other, prompts, settings))
        first, second = (arm() for arm in arms)  # warm up
        equal = "yes" if first == second else "no" if label == "greedy" else ""
        mine, peer = measure(arms, batch * options.new_tokens, options.rounds, CLOCKS[options.clock])
        ratio = statistics.median(a / b for a, b in zip(mine, peer, strict=True))
        print(f"| {name}, {parameter_count(config) / 1e6:.0f}M | {batch} | {label} | {statistics.median(mine):,.0f} | "
              f"{statistics.median(peer):,.0f} | {ratio:.2f} {'met' if ratio >= BAR else 'not met'} | {equal} |",
              flush=True)  # fmt: skip


def main() -> None:
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64, help="of the longest prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--drawing", nargs="+", default=list(DRAWING), choices=DRAWING)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    tokens = f"{options.new_tokens} new tokens after prompts of up to {options.prompt_tokens}"
    print(f"{versions}, fp32, {options.threads} threads, {tokens}, {options.rounds} rounds, {options.clock} time, "
          f"load average {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print("| model | batch | drawing | dgpt tokens/s | transformers tokens/s | ratio, bar 1.0 | equal tokens |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        for batch in options.batches:
            compare(name, batch, options)


if __name__ == "__main__":
    main()
