"""GPT: the GPT-2 and Llama families in one file, by configuration.

GPT-2 is learned positions, LayerNorm, GELU, biases and a tied head (Radford et al. 2019); Llama is RoPE, RMSNorm,
SwiGLU, grouped-query attention and no biases (arXiv:2302.13971). Nothing here knows of ranks: `dgpt.parallel` swaps
layers from outside, which is why sizes below are read off tensors (a TP rank has H/tp heads), not off the settings.

B batch, T sequence, K keys (cached + new), C n_embd, H query heads, G key/value heads, D head_dim, V padded vocab
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgpt.config import ModelConfig
from dgpt.model.attention_cpu import causal_attention
from dgpt.model.loss import linear_cross_entropy


class LayerCache(Protocol):
    """Keys and values of the tokens before, for one layer (dgpt.model.cache)."""

    def append(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, G, T, D) of the tokens at `positions` (1 or B, T); return all so far (B, G, K, D)."""


class Cache(Protocol):
    """One LayerCache a block."""

    @property
    def layers(self) -> Sequence[LayerCache]: ...

    @property
    def length(self) -> int:
        """Tokens of the longest sequence; 0 before the first forward pass."""

    def positions(self, count: int) -> Tensor:
        """Where the next `count` tokens of each sequence stand: (1, count), or (B, count) if lengths differ."""


@dataclass(frozen=True)
class Context:
    """Where the tokens of this forward pass stand; computed once, used by every block."""

    positions: Tensor  # (B or 1, T) int64
    rotary: tuple[Tensor, Tensor] | None  # cos and sin (B or 1, 1, T, D), fp32
    mask: Tensor | None  # (B or 1, 1, T, K) bool, True where a query may look; None: see causal
    causal: bool  # without a mask: each token sees itself and those before it (else all K)


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE (arXiv:2104.09864), in the half-split layout of Llama: (B, T) -> 2 x (B, 1, T, D)."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim)  # (D/2,)
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, T, D/2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (B, H, T, D) by its positions; computed in fp32, returned in the type of x."""
    left, right = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-right, left), dim=-1) * sin).type_as(x)


def document_positions(documents: Tensor) -> Tensor:
    """Position of each token within its document: (B, T) document numbers -> (B, T)."""
    index = torch.arange(documents.size(1), device=documents.device).expand_as(documents)
    starts = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
    return index - (index * starts).cummax(dim=1).values


class Attend(nn.Module):
    """Softmax attention. A module of its own so that TP and activation checkpointing can wrap just this part."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """q (B, H, T, D), k and v (B, G, K, D) -> (B, H, T, D)."""
        dropout = self.dropout if self.training else 0.0
        causal = context.causal and context.mask is None
        if causal and not dropout and q.device.type == "cpu":
            return causal_attention(q, k, v)
        groups, shape = q.size(1) // k.size(1), q.shape
        if groups > 1 and q.size(2) == 1:  # one token: the heads of a group are rows of one product
            q, causal = q.view(q.size(0), -1, groups, q.size(3)), False  # (B, G, H/G, D)
        elif groups > 1 and context.mask is not None:  # no fused kernel takes both a mask and groups
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        y = F.scaled_dot_product_attention(
            q, k, v, context.mask, dropout_p=dropout, is_causal=causal, enable_gqa=q.size(1) != k.size(1)
        )
        return y.reshape(shape)  # (B, H, T, D)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.n_embd, config.kv_heads * config.head_dim
        self.q = nn.Linear(width, width, bias=config.bias)
        self.k = nn.Linear(width, kv_width, bias=config.bias)
        self.v = nn.Linear(width, kv_width, bias=config.bias)
        self.attend = Attend(config.dropout)
        self.proj = nn.Linear(width, width, bias=config.bias)

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        q, k, v = (self.split_heads(layer(x)) for layer in (self.q, self.k, self.v))
        if context.rotary is not None:
            q, k = rotate(q, *context.rotary), rotate(k, *context.rotary)
        if cache is not None:
            k, v = cache.append(k, v, context.positions)
        y = self.attend(q, k, v, context)  # (B, H, T, D)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, H*D) -> (B, H, T, D)."""
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.ff_width, bias=config.bias)
        self.gate = nn.Linear(config.n_embd, config.ff_width, bias=config.bias) if config.mlp == "swiglu" else None
        self.down = nn.Linear(config.ff_width, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C): GELU (tanh form, as GPT-2) or SwiGLU (arXiv:2002.05202)."""
        up = self.up(x)
        hidden = F.gelu(up, approximate="tanh") if self.gate is None else F.silu(self.gate(x)) * up
        return self.down(hidden)  # type: ignore[no-any-return]


def make_norm(config: ModelConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(config)
        self.attn = Attention(config)
        self.norm2 = make_norm(config)
        self.mlp = MLP(config)
        self.drop1 = nn.Dropout(config.dropout)
        self.drop2 = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.drop1(self.attn(self.norm1(x), context, cache))
        return x + self.drop2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class Head(nn.Module):
    """The output matrix: logits, or with targets the loss, for which the logits are never held all at once."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight: Tensor = nn.Parameter(torch.empty(config.padded_vocab_size, config.n_embd))
        self.chunk_tokens = 1024
        self.z_loss = 0.0

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """x (B, T, C) -> logits (B, T, V), or with targets (B, T) the mean loss, a scalar in fp32.

        The z-loss is a help to training and no part of what an evaluation measures.
        """
        if targets is None:
            return F.linear(x, self.weight)
        z_loss = self.z_loss if self.training else 0.0
        return linear_cross_entropy(
            x.flatten(0, 1), self.weight, targets.flatten(), chunk_tokens=self.chunk_tokens, z_loss=z_loss
        )


class GPT(nn.Module):
    """Weights are left uninitialised: see dgpt.model.init."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.seq_len, config.n_embd) if config.position == "learned" else None
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config)
        self.head = Head(config)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make head and embedding one parameter again, after a conversion that replaced parameters."""
        if self.config.tie_embeddings:
            self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V), or with targets (B, T; -100 is left out) the mean loss in fp32.

        documents (B, T), if given, numbers the document of each token: attention and positions start anew in each.
        """
        return self.head(self.hidden(tokens, documents), targets)  # type: ignore[no-any-return]

    def hidden(self, tokens: Tensor, documents: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """The final hidden states (B, T, C) of tokens (B, T) that follow those in the cache."""
        positions = self.positions(tokens, documents, cache)
        context = self.context(positions, documents, cache)
        x = self.wte(tokens)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(positions)
        x = self.drop(x)
        for i, block in enumerate(self.blocks):
            x = block(x, context, cache.layers[i] if cache is not None else None)
        return self.norm(x)  # type: ignore[no-any-return]

    def positions(self, tokens: Tensor, documents: Tensor | None, cache: Cache | None) -> Tensor:
        """(1, T), or (B, T) with documents or sequences of different lengths."""
        if documents is not None:
            return document_positions(documents)
        if cache is not None:
            return cache.positions(tokens.size(1))
        return torch.arange(tokens.size(1), device=tokens.device)[None]

    def context(self, positions: Tensor, documents: Tensor | None, cache: Cache | None) -> Context:
        """Rotary angles and mask for `positions` (1 or B, T)."""
        angles = rotary(positions, self.config.head_dim, self.config.rope_theta) if self.wpe is None else None
        mask, length = None, positions.size(1)
        if documents is not None:
            causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
            mask = ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]  # (B, 1, T, T)
        elif cache is not None and cache.length > 0 and positions.numel() > 1:
            keys = torch.arange(cache.length + length, device=positions.device)
            mask = (keys <= positions[:, :, None])[:, None]  # (1 or B, 1, T, K)
        return Context(positions, angles, mask, causal=cache is None or cache.length == 0)
