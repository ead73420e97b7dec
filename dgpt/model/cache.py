"""Keys and values of the tokens a model has read, so that each new token costs one position of work.

B sequences, T new tokens, K places in use (of the longest sequence), G key/value heads, D head_dim
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """The cache of a whole model, `dgpt.model.gpt.Cache`, for B sequences that may differ in length.

    Shorter prompts are padded on the right: a causal model does not look at what comes later, positions count from 0
    in each sequence, and the tokens that follow overwrite the padding. So a sequence means the same in any batch.
    After each forward pass `advance` says how much of it was real.
    """

    def __init__(self, n_layer: int, n_sequences: int, max_tokens: int, device: torch.device) -> None:
        self.max_tokens = max_tokens
        self.device = device
        self.layers = [LayerKV(self) for _ in range(n_layer)]
        self._set([0] * n_sequences)

    def positions(self, count: int) -> Tensor:
        """Where the next `count` tokens of each sequence stand: (1, count), or (B, count) if lengths differ."""
        if self.start is not None:
            return torch.arange(self.start, self.start + count, device=self.device)[None]
        return torch.tensor(self.lengths, device=self.device)[:, None] + torch.arange(count, device=self.device)

    def advance(self, counts: Sequence[int]) -> None:
        """Sequence b now holds `counts[b]` tokens more; whatever was passed beyond these was padding."""
        self._set([length + count for length, count in zip(self.lengths, counts, strict=True)])

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but `rows`, which ascend."""
        self._set([self.lengths[row] for row in rows])
        for layer in self.layers:
            layer.keep(rows)

    def _set(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.length = max(lengths)  # tokens of the longest sequence
        self.start = lengths[0] if len(set(lengths)) == 1 else None  # of the next token, where it is the same for all


class LayerKV:
    """Keys and values of one layer. Room for `max_tokens` places a sequence is allocated once, by the first append.

    The number of heads, the data type and the device are those of the first keys: nothing here needs to know what
    surrounds the layer.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.k = self.v = torch.empty(0)

    def append(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, G, T, D) to `positions` (1 or B, T); return the places in use, 2 x (B, G, K, D)."""
        if not self.k.numel():
            # Zeros, for a place that a mask hides is still multiplied by 0, and 0 * NaN is NaN.
            self.k, self.v = (k.new_zeros(*k.shape[:2], self.cache.max_tokens, k.size(3)) for _ in range(2))
        self._write(k, v, positions)
        end = self.cache.length + k.size(2)
        return self.k[:, :, :end], self.v[:, :, :end]

    def _write(self, k: Tensor, v: Tensor, positions: Tensor) -> None:
        start = self.cache.start
        if start is not None:  # a plain copy
            self.k[:, :, start : start + k.size(2)] = k
            self.v[:, :, start : start + k.size(2)] = v
        else:
            place = positions[:, None, :, None].expand_as(k)  # (B, G, T, D)
            self.k.scatter_(2, place, k)
            self.v.scatter_(2, place, v)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but `rows`, which ascend: they move up in place, as far as they are filled."""
        end = self.cache.length
        for new, old in enumerate(rows):
            if new != old:
                self.k[new, :, :end] = self.k[old, :, :end]
                self.v[new, :, :end] = self.v[old, :, :end]
        self.k, self.v = self.k[: len(rows)], self.v[: len(rows)]
