"""A GPT that judges a text in place of writing one: a linear head on the final hidden states (arXiv:1810.04805, 4).

B batch, T sequence, C n_embd, L classes
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgpt.model.gpt import GPT


class HeadedGPT(GPT):
    """The modules of `gpt` but its output matrix, under their names, and `task_head`: C -> n_outputs."""

    def __init__(self, gpt: GPT, n_outputs: int, bias: bool) -> None:
        nn.Module.__init__(self)
        self.config = gpt.config
        for name, module in gpt._modules.items():
            if name not in ("head", "task_head"):
                self.add_module(name, module)
        self.wpe = gpt.wpe  # None, and so none of the modules, with rotary positions
        like = gpt.wte.weight
        self.task_head = nn.Linear(gpt.config.n_embd, n_outputs, bias=bias, device=like.device, dtype=like.dtype)

    def tie_weights(self) -> None:
        """There is no output matrix to tie."""


class Classifier(HeadedGPT):
    """The class of a text, from its last token: that one has seen them all. As GPT2ForSequenceClassification."""

    def __init__(self, gpt: GPT, n_classes: int, *, multi_label: bool = False, class_weights: Sequence[float] = ()):
        super().__init__(gpt, n_classes, bias=False)
        self.multi_label, self.class_weights = multi_label, tuple(class_weights)

    def forward(self, tokens: Tensor, ends: Tensor, labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """tokens (B, T), padded on the right; ends (B,): place of each last token -> logits (B, L), or the mean loss.

        labels: (B,) int64, in training weighed by class_weights; with multi_label (B, L) of 0 and 1, the mean over all
        B * L.
        """
        rows = torch.arange(len(tokens), device=tokens.device)
        logits = self.task_head(self.hidden(tokens)[rows, ends]).float()  # (B, L)
        if labels is None:
            return logits  # type: ignore[no-any-return]
        if self.multi_label:
            return F.binary_cross_entropy_with_logits(logits, labels)
        weights = self.class_weights if self.training else ()
        return F.cross_entropy(logits, labels, torch.tensor(weights, device=logits.device) if weights else None)


class SpanFinder(HeadedGPT):
    """Where an answer starts and ends. As GPT2ForQuestionAnswering."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__(gpt, 2, bias=True)

    def forward(self, tokens: Tensor, allowed: Tensor, answers: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """tokens (B, T) -> scores of a start and of an end at each place (B, T, 2), or with answers the mean loss.

        allowed (B, T) bool: where an answer may start and end; answers (B, 2): first and last place.
        """
        scores = self.task_head(self.hidden(tokens)).float()  # (B, T, 2)
        scores = scores.masked_fill(~allowed[:, :, None], float("-inf"))
        return scores if answers is None else F.cross_entropy(scores, answers)
