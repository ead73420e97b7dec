"""A short text from the model while it trains, at any topology: every rank runs the same forward passes."""

from collections.abc import Callable

import torch

from dgpt.config import RunConfig
from dgpt.data.tokenizer import Tokenizer
from dgpt.parallel.engine import Engine

TEMPERATURE = 0.8


def preview(
    engine: Engine, tokenizer: Tokenizer, config: RunConfig, device: torch.device, alive: Callable[[], None]
) -> str:
    """logging.sample_tokens tokens after logging.sample_prompt. Without a cache, and padded so that tp divides T.

    alive: is called before each of them.
    """
    tokens = tokenizer.encode(config.logging.sample_prompt) or [tokenizer.eod_id]
    generator = torch.Generator().manual_seed(config.seed)  # on the CPU: all ranks draw alike
    unit = 64 * config.parallel.tp
    engine.model.eval()
    with torch.no_grad():
        for _ in range(config.logging.sample_tokens):
            alive()
            context = tokens[-config.model.seq_len :]
            length = min(config.model.seq_len, -(-len(context) // unit) * unit)
            padded = torch.tensor([context + [tokenizer.eod_id] * (length - len(context))], device=device)
            logits = engine.model(padded)[0, len(context) - 1, : tokenizer.vocab_size].float().cpu()
            logits[list(tokenizer.unreachable)] = float("-inf")
            p = (logits / TEMPERATURE).softmax(dim=-1)
            tokens.append(int(torch.multinomial(p, 1, generator=generator)))
    engine.model.train()
    return tokenizer.decode(tokens)
