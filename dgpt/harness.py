"""A dgpt model in lm-evaluation-harness (`pip install dgpt[eval]`; https://github.com/EleutherAI/lm-evaluation-harness).

Importing this module registers the model "dgpt" there:

    import dgpt.harness, lm_eval
    lm_eval.simple_evaluate("dgpt", model_args={"path": "runs/demo"}, tasks=["lambada_openai"])
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor

from dgpt.data.chat import JINJA, segments
from dgpt.data.tokenizer import Tokenizer
from dgpt.data.windows import IGNORE, Text, Windows
from dgpt.errors import UserError
from dgpt.generate import load_model
from dgpt.model.generate import generate_texts
from dgpt.model.gpt import GPT
from dgpt.model.likelihood import log_likelihood
from dgpt.model.sampling import Sampling
from dgpt.progress import count_bar
from dgpt.runtime import Runtime

Scored = tuple[float, bool]  # log p of a continuation, and whether it is what greedy decoding gives
Pair = tuple[list[int], list[int]]  # tokens of a context, and of what follows it


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the library is untyped
    """Answers the harness's requests: likelihoods and continuations. A context that is too long loses its beginning."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, runtime: Runtime | None = None, batch_size: int = 8) -> None:
        super().__init__()
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self._device = model.wte.weight.device
        if runtime is not None:  # each rank has its share of the requests
            self._rank, self._world_size = runtime.rank, runtime.world_size
        self.runtime = runtime
        self.max_length = model.config.seq_len
        self.cut = 0  # prompts that lost their beginning, in the last call of generate_until
        self.chat = False  # texts hold end-of-document tokens by name, from apply_chat_template

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eod_id

    @property
    def tokenizer_name(self) -> str:
        return f"dgpt-{self.tokenizer.hash}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Token ids. Text reaches no special token, but for ends of answers in a conversation."""
        if not self.chat:
            return self.tokenizer.encode(string)
        first, *others = map(self.tokenizer.encode, string.split(self.tokenizer.end_of_document))
        return [*first, *(i for other in others for i in (self.eot_token_id, *other))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of each whole text, every token once, as much context as fits (`dgpt.data.windows`)."""
        texts = [Text(torch.tensor(self.tok_encode(request.args[0])).numpy()) for request in requests]
        windows = Windows(texts, seq_len=self.max_length, stride=self.max_length, eod_id=self.eot_token_id)
        sums = [0.0] * len(texts)
        with count_bar("likelihoods", len(windows), enabled=self._rank == 0 and not disable_tqdm) as advance:
            for first in range(0, len(windows), self.batch_size):
                size = min(self.batch_size, len(windows) - first)
                found, _ = self._score(*windows.batch(first, size))
                for number, value in enumerate(found.sum(dim=1).tolist(), start=first):
                    sums[windows[number].row] += value
                advance(size)
        return sums

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[Scored]:
        """The longest first, so that a batch holds alike lengths."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        results: list[Scored] = [(0.0, True)] * len(requests)
        with count_bar("likelihoods", len(order), enabled=self._rank == 0 and not disable_tqdm) as advance:
            for at in range(0, len(order), self.batch_size):
                chosen = order[at : at + self.batch_size]
                for i, scored in zip(chosen, self._pairs([requests[i][1:] for i in chosen]), strict=True):
                    results[i] = scored
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], scored)
                advance(len(chosen))
        return results

    def _pairs(self, pairs: Sequence[Pair]) -> list[Scored]:
        """One batch. Raises UserError for a continuation that the model cannot read as a whole."""
        longest = max(min(len(context) + len(end) - 1, self.max_length) for context, end in pairs)
        tokens = torch.full((len(pairs), longest), self.eot_token_id)
        targets = torch.full((len(pairs), longest), IGNORE)
        for row, (context, end) in enumerate(pairs):
            if len(end) > self.max_length:
                raise UserError(f"a continuation has {len(end)} tokens",
                                rule=f"this model reads {self.max_length} tokens at most",
                                fix="leave this task out, or take a model with a longer seq_len")  # fmt: skip
            ids = torch.tensor([*context, *end][-(self.max_length + 1) :])
            tokens[row, : len(ids) - 1] = ids[:-1]
            targets[row, len(ids) - 1 - len(end) : len(ids) - 1] = ids[len(ids) - len(end) :]
        found, greedy = self._score(tokens, targets)
        right = (greedy | (targets == IGNORE)).all(dim=1)
        return list(zip(found.sum(dim=1).tolist(), right.tolist(), strict=True))

    def _score(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """On the model's device and back."""
        found, greedy = log_likelihood(self.model, tokens.to(self._device), targets.to(self._device))
        return found.cpu(), greedy.cpu()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations; requests with the same settings share batches."""
        self.cut = 0
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        results = [""] * len(requests)
        with count_bar("continuations", len(requests), enabled=self._rank == 0 and not disable_tqdm) as advance:
            for members in groups.values():
                contexts = [requests[i].args[0] for i in members]
                for i, text in zip(members, self._continue(contexts, requests[members[0]].args[1]), strict=True):
                    results[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    advance(1)
        if self.cut:
            print(f"cut {self.cut} of {len(requests)} prompts at their beginning: with max_gen_toks they are above the "
                  f"model's seq_len = {self.max_length}", file=sys.stderr, flush=True)  # fmt: skip
        return results

    def _continue(self, contexts: Sequence[str], wishes: dict[str, Any]) -> list[str]:
        settings = normalize_gen_kwargs(wishes)
        new_tokens = min(settings["max_gen_toks"], self.max_length - 1)
        sampling = Sampling(
            new_tokens, settings.get("temperature", 0.0), settings.get("top_k", 0), settings.get("top_p", 1.0),
            min_p=settings.get("min_p", 0.0), repetition_penalty=settings.get("repetition_penalty", 1.0),
        )  # fmt: skip
        prompts = [self._shortened(self.tok_encode(context), new_tokens) for context in contexts]
        stops = [stop for stop in settings["until"] if stop]
        completions = generate_texts(self.model, self.tokenizer, prompts, sampling, stop_strings=stops,
                                     batch_size=self.batch_size)  # fmt: skip
        return [completion.text for completion in completions]

    def _shortened(self, prompt: list[int], new_tokens: int) -> list[int]:
        """Without its beginning, so that the answer fits behind it; half of the context is for the prompt."""
        room = max(self.max_length - new_tokens, self.max_length // 2)
        self.cut += len(prompt) > room
        return prompt[-room:]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return JINJA if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The template as text, for the harness hands on text; `tok_encode` then reads the ends of answers in it."""
        self.chat = True
        end = self.tokenizer.end_of_document
        pieces = segments(chat_history, answer=add_generation_prompt)  # type: ignore[arg-type]
        return "".join(text + end * learnt for text, learnt in pieces)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """A number of every rank, (world_size,)."""
        values = self.runtime.gather(tensor.item()) if self.runtime is not None else [tensor.item()]
        return torch.tensor(values)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Every rank's object, on `dst`."""
        values = self.runtime.gather(obj) if self.runtime is not None else [obj]
        return values if self._rank == dst else None

    def barrier(self) -> None:
        if self._world_size > 1:
            dist.barrier()


@register_model("dgpt")
class HarnessCheckpoint(HarnessModel):
    """The model of a checkpoint, a run or an export, by path."""

    def __init__(self, path: str, batch_size: int | str | None = None, device: object = None,
                 max_batch_size: object = None) -> None:  # fmt: skip
        """device: is what dgpt finds; max_batch_size: has no meaning. Raises UserError if `path` holds no model."""
        super().__init__(*load_model(path), batch_size=int(batch_size or 8))


def run(
    model: HarnessModel, tasks: Sequence[str], *, include_path: Path | None = None, num_fewshot: int | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """The measures of each task, on rank 0 (elsewhere {}). include_path: a folder with task files of the user's own.

    Raises UserError for a task that the harness does not know. A task file can name Python functions, which then run.
    """
    from lm_eval.evaluator import simple_evaluate

    manager = _manager(tasks, include_path)
    if unknown := _unknown(manager, tasks):
        raise UserError(f"--lm-eval = '{unknown[0]}' is no task that lm-evaluation-harness knows",
                        rule="a task is one of `lm_eval ls tasks`, or of a .yaml file in --include-path",
                        fix="correct the name, or give the folder of its task file")  # fmt: skip
    results = simple_evaluate(model, tasks=list(tasks), num_fewshot=num_fewshot, limit=limit, task_manager=manager,
                              log_samples=False)  # fmt: skip
    measured = results["results"] if results else {}
    return {task: {name.removesuffix(",none"): value for name, value in values.items() if isinstance(value, float)}
            for task, values in measured.items()}  # fmt: skip


def _manager(tasks: Sequence[str], include_path: Path | None) -> Any:
    """The harness's own tasks are thousands of files: they are looked through only for what is not in include_path."""
    from lm_eval.tasks import TaskManager

    if include_path:
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if not _unknown(manager, tasks):
            return manager
    return TaskManager(include_path=include_path)


def _unknown(manager: Any, tasks: Sequence[str]) -> list[str]:
    return [task for task in tasks if not manager.match_tasks([task])]
