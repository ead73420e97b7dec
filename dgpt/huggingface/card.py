"""README.md of an exported model: what it is, what it was trained on and how, and how to use it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

import dgpt
from dgpt.checkpoint.format import Manifest
from dgpt.config import flat
from dgpt.huggingface.settings import Task

SECTIONS = ("model", "optimizer", "schedule", "precision", "training", "task", "lora")  # that name no path or machine
PIPELINES = {
    "language_model": "text-generation",
    "classification": "text-classification",
    "extractive_qa": "question-answering",
}
CLASSES = {
    "language_model": "AutoModelForCausalLM",
    "classification": "AutoModelForSequenceClassification",
    "extractive_qa": "AutoModelForQuestionAnswering",
}
INPUTS = {  # what stands below the example
    "language_model": "",
    "classification": "\ndgpt gives it a text, and where there are two: text, end-of-document token, second text. "
    "`tokenizer(text)` and `tokenizer(text, second)` write just these.\n",
    "extractive_qa": "\ndgpt gives it: question, end-of-document token, context, end-of-document token. "
    '`tokenizer(question, context)` writes just that. The last token stands for "no answer".\n',
}


@dataclass(frozen=True)
class Facts:
    """What a checkpoint knows of its training."""

    step: int
    tokens: int  # trained on
    loss: float | None  # of the last step
    data_hash: str
    tokenizer_hash: str
    settings: Mapping[str, JsonValue]  # of the run

    @classmethod
    def of(cls, manifest: Manifest) -> "Facts":
        meta = manifest.meta
        return cls(manifest.step, meta.tokens, meta.loss, meta.data_hash, meta.tokenizer_hash, meta.config)

    @property
    def trained_here(self) -> bool:
        """Else it was imported."""
        return self.tokens > 0

    @property
    def task(self) -> Task:
        """What the head is for, if it was fine-tuned; generation needs no other head than a language model's."""
        task: Any = self.settings.get("task") or {}
        if task.get("kind") not in ("classification", "extractive_qa"):
            return Task()
        return Task(task["kind"], tuple(task.get("labels") or ()), bool(task.get("multi_label")))


def model_card(name: str, title: str, parameters: int, task: Task, facts: Facts) -> str:
    """Markdown with the front matter of the Hugging Face hub. title: the class of transformers."""
    known = {
        "architecture": title,
        "parameters": f"{parameters:,}",
        **_of_training(facts),
        "tokenizer (sha256)": facts.tokenizer_hash,
        "written by": f"dgpt {dgpt.__version__}",
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in known.items())
    sections = SECTIONS if facts.trained_here else SECTIONS[:1]  # the others would be defaults
    chosen = {name: facts.settings[name] for name in sections if name in facts.settings}
    settings = "\n".join(f"{key} = {value!r}" for key, value in flat(chosen).items())
    return TEMPLATE.format(name=name, pipeline=PIPELINES[task.kind], rows=rows, settings=settings,
                           model_class=CLASSES[task.kind], inputs=INPUTS[task.kind])  # fmt: skip


def _of_training(facts: Facts) -> dict[str, str]:
    if not facts.trained_here:
        return {"training": "elsewhere; `dgpt import` knows nothing of it"}
    learnt = "training rows" if "task" in facts.settings else "prepared tokens"
    return {
        "optimizer steps": f"{facts.step:,}",
        "tokens trained on": f"{facts.tokens:,}",
        "loss of the last step": "unknown" if facts.loss is None else f"{facts.loss:.4f}",
        f"data (sha256 of the {learnt})": facts.data_hash or "unknown",
    }


TEMPLATE = """\
---
library_name: transformers
pipeline_tag: {pipeline}
tags:
- dgpt
# license: yours to choose
---

# {name}

```python
from transformers import {model_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = {model_class}.from_pretrained("{name}")
```
{inputs}
## Training

| | |
|---|---|
{rows}

```
{settings}
```

## License

Not stated. Whoever publishes the model chooses one that the training data allow.
"""
