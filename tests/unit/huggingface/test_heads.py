"""Fine-tuned models leave for transformers and come back, with their heads and labels; LoRA is merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from dgpt import lora
from dgpt.cli import main
from dgpt.config import FinetuneConfig, TaskConfig
from dgpt.finetuned import load_finetuned
from dgpt.generate import load_model
from dgpt.outcome import DONE
from dgpt.tasks.rows import Row

LABELS = ("bad", "good", "so so")
TOKENS = torch.randint(3, 300, (3, 17), generator=torch.Generator().manual_seed(0))


def load(kind: Any, folder: Path) -> Any:
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return model.eval()


def there_and_back(run: Path, tmp_path: Path) -> tuple[Any, Any]:
    """The fine-tuned model, and what came back of it."""
    assert main(["export", str(run), str(tmp_path / "hf")]) == DONE
    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "ours")]) == DONE
    before, after = load_finetuned(run), load_finetuned(tmp_path / "ours")
    assert (before.config.task.kind, before.config.task.labels, before.config.task.multi_label) == (
        after.config.task.kind, after.config.task.labels, after.config.task.multi_label)  # fmt: skip
    expected = dict(before.model.named_parameters())
    for name, tensor in after.model.named_parameters():
        assert torch.equal(tensor, expected[name][: len(tensor)])
    assert before.tokenizer.hash == after.tokenizer.hash
    return before.model, after.model


@torch.no_grad()
@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_a_classifier_judges_the_last_token_of_each_text(shape: str, make_run: Any, tmp_path: Path) -> None:
    task = TaskConfig(kind="classification", labels=LABELS, multi_label=shape == "llama")
    ours, _ = there_and_back(make_run(1, task, shape=shape), tmp_path)
    theirs = load(transformers.AutoModelForSequenceClassification, tmp_path / "hf")
    assert theirs.config.id2label == dict(enumerate(LABELS))
    assert theirs.config.problem_type == ("multi" if shape == "llama" else "single") + "_label_classification"
    ends = torch.tensor([16, 4, 0])
    padded = TOKENS.masked_fill(torch.arange(17) > ends[:, None], theirs.config.pad_token_id)
    expected = theirs(padded, attention_mask=padded != theirs.config.pad_token_id).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(padded, ends), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_a_span_finder_scores_each_place(shape: str, make_run: Any, tmp_path: Path) -> None:
    ours, _ = there_and_back(make_run(1, TaskConfig(kind="extractive_qa"), shape=shape), tmp_path)
    theirs = load(transformers.AutoModelForQuestionAnswering, tmp_path / "hf")(TOKENS)
    expected = torch.stack((theirs.start_logits, theirs.end_logits), dim=-1)
    assert expected.std() > 0.1
    allowed = torch.ones_like(TOKENS, dtype=torch.bool)
    torch.testing.assert_close(ours(TOKENS, allowed), expected, atol=1e-5, rtol=1e-5)


def test_two_texts_become_the_ids_that_the_task_reads(make_run: Any, tmp_path: Path) -> None:
    first, second = "ba fe <|endoftext|>?", "  fe dio, ba"
    asked = {"classification": {"text": first, "text_pair": second},
             "extractive_qa": {"question": first, "context": second}}  # fmt: skip
    for kind, row in asked.items():
        run = make_run(1, TaskConfig.model_validate({"kind": kind, "labels": LABELS, "stride_tokens": 4}))
        assert main(["export", str(run), str(tmp_path / kind)]) == DONE
        theirs, model = transformers.AutoTokenizer.from_pretrained(tmp_path / kind), load_finetuned(run)
        query: Any = model.task.query(Row("", row))
        expected = query if kind == "classification" else query.windows[0].ids
        assert theirs(first, second).input_ids == expected.tolist()
        assert theirs(first).input_ids == model.tokenizer.encode(first)
        assert theirs(first, second).keys() == {"input_ids", "attention_mask"}
        assert "`tokenizer(" in (tmp_path / kind / "README.md").read_text()


@torch.no_grad()
@pytest.mark.parametrize("chat", [False, True])
def test_a_model_tuned_on_conversations_has_a_chat_template(make_run: Any, tmp_path: Path, chat: bool) -> None:
    run = make_run(1, TaskConfig(kind="generation", chat=chat))
    assert main(["export", str(run), str(tmp_path / "hf")]) == DONE
    settings = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert ("<|assistant|>" in settings.get("chat_template", "")) == chat
    theirs = load(transformers.AutoModelForCausalLM, tmp_path / "hf")
    torch.testing.assert_close(load_model(run)[0](TOKENS)[..., :300], theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_lora_is_merged_and_its_base_is_needed_no_more(make_run: Any, tmp_path: Path) -> None:
    base = make_run()

    def updates(config: FinetuneConfig) -> dict[str, Tensor]:
        adapted = lora.apply(load_model(base)[0], config)
        return {f.name: torch.randn(f.shape) * 0.2 for f in lora.fragments(adapted)}

    finetune = {"base": str(base), "lora": {"rank": 2}}
    run = make_run(1, TaskConfig(kind="generation"), updates, finetune=finetune)
    expected, original = load_model(run)[0](TOKENS), load_model(base)[0](TOKENS)
    assert (expected - original).abs().max() > 0.1
    for form in ("huggingface", "dgpt"):
        assert main(["export", str(run), str(tmp_path / form), "--format", form]) == DONE
    base.rename(tmp_path / "gone")
    theirs = load(transformers.AutoModelForCausalLM, tmp_path / "huggingface")
    torch.testing.assert_close(theirs(TOKENS).logits, expected[..., :300], atol=1e-5, rtol=1e-5)
    assert torch.equal(load_model(tmp_path / "dgpt")[0](TOKENS), expected)
