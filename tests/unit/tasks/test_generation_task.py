"""Only answers are learnt; packs of examples mean the same as examples alone."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dgpt.data.tokenizer import Tokenizer
from dgpt.errors import UserError
from dgpt.model.init import build_model
from dgpt.tasks.base import Example, Task
from dgpt.tasks.packing import pack
from dgpt.tasks.rows import Row

MakeTask = Callable[..., Task]
WORDS = ["ba", "fe", "gio", "kouren", "la_x", "ni12"]


def row(**values: Any) -> Row:
    return Row("file 'x.jsonl', line 7", values)


def examples_of(task: Task, count: int, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    rows = [row(prompt=" ".join(rng.choices(WORDS, k=rng.randint(1, 12))),
                completion=" " + " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))) for _ in range(count)]  # fmt: skip
    return [example for r in rows for example in task.examples(r)]


def test_only_the_answer_and_its_end_are_learnt(make_task: MakeTask, tokenizer: Tokenizer) -> None:
    task = make_task("generation")
    tokens, targets, documents = task.inputs([task.examples(row(prompt="ba fe", completion=" gio"))])
    prompt, answer = tokenizer.encode("ba fe"), [*tokenizer.encode(" gio"), tokenizer.eod_id]
    assert tokens is not None
    assert targets is not None
    assert tokens[0].tolist() == [*prompt, *answer][:-1]
    assert targets[0].tolist() == [-100] * (len(prompt) - 1) + answer
    assert documents is None


def test_of_a_conversation_each_answer_is_learnt(make_task: MakeTask, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "ba"}, {"role": "assistant", "content": "fe"},
                {"role": "user", "content": "gio"}, {"role": "assistant", "content": "ni12"}]  # fmt: skip
    task = make_task("generation")
    _, targets, _ = task.inputs([task.examples(row(messages=messages))])
    assert targets is not None
    learnt = [*tokenizer.encode("fe"), tokenizer.eod_id, *tokenizer.encode("ni12"), tokenizer.eod_id]
    assert [t for t in targets[0].tolist() if t != -100] == learnt
    assert tokenizer.decode(task.query(row(messages=messages))).endswith("gio\n<|assistant|>\n")
    assert task.gold(row(messages=messages)) == "ni12"


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_packed_and_unpacked_examples_have_equal_losses(make_task: MakeTask, shape: str) -> None:
    """And gradients: no example sees another."""
    task = make_task("generation")
    examples = examples_of(task, 24)
    config = task.config.model.model_copy(update={"position": "rope" if shape == "llama" else "learned"})
    model, gradients, losses = build_model(config, 5, torch.device("cpu")), [], []
    packs = pack([e.length for e in examples], task.max_tokens)
    assert max(map(len, packs)) > 2
    for samples in ([[e] for e in examples], [[examples[i] for i in numbers] for numbers in packs]):
        model.zero_grad()
        loss = model(*task.inputs(samples))
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert torch.allclose(*gradients, atol=1e-6)


def test_packs_hold_every_example_once_and_no_more_than_fits() -> None:
    rng = random.Random(1)
    for capacity in (1, 7, 64):
        lengths = [rng.randint(1, capacity) for _ in range(300)]
        packs = pack(lengths, capacity)
        assert sorted(number for numbers in packs for number in numbers) == list(range(300))
        assert all(sum(lengths[number] for number in numbers) <= capacity for numbers in packs)
        assert len(packs) <= 11 / 9 * -(-sum(lengths) // capacity) + 1 or capacity == 1


@pytest.mark.parametrize("rule", ["refuse", "skip", "truncate"])
def test_an_example_that_is_too_long(make_task: MakeTask, tokenizer: Tokenizer, rule: str) -> None:
    task = make_task("generation", data={"over_long": rule, "max_tokens": 10})
    long = row(prompt="ba " * 20, completion="fe")
    if rule == "refuse":
        with pytest.raises(UserError, match=r"file 'x.jsonl', line 7: the example has \d+ tokens, the limit is 10"):
            task.examples(long)
        return
    found = task.examples(long)
    assert (len(found), task.skipped, task.cut) == ((0, 1, 0) if rule == "skip" else (1, 0, 1))
    if found:  # the end, with the answer
        assert found[0].length == 10
        assert tokenizer.decode(found[0].ids[:-1]).endswith("ba fe")


def test_scores_are_those_of_rouge_and_of_equal_texts(make_task: MakeTask) -> None:
    answers = [{"completion": " the cat sat"}, {"completion": "dog"}, {"completion": ""}]
    scores = make_task("generation").scores(["the cat sat", "a dog", "x"], answers)
    assert scores == pytest.approx({"exact_match": 1 / 3, "rouge_l": (1 + 2 / 3 + 0) / 3})


def test_generative_qa_learns_the_answer_after_context_and_question(make_task: MakeTask, tokenizer: Tokenizer) -> None:
    task = make_task("generative_qa")
    question = {"id": "1", "context": "ba fe gio", "question": "fe?"}
    for answers, text in (({"text": ["gio"], "answer_start": [6]}, " gio"),
                          ({"text": [], "answer_start": []}, " no answer")):  # fmt: skip
        (example,) = task.examples(row(**question, answers=answers))
        _, targets, _ = task.inputs([[example]])
        assert targets is not None
        learnt = [t for t in targets[0].tolist() if t != -100]
        assert learnt == [*tokenizer.encode(text), tokenizer.eod_id]
        assert tokenizer.decode(example.ids).startswith("ba fe gio\n\nQuestion: fe?\nAnswer:")


def test_what_follows_the_last_answer_is_asked_and_not_learnt(make_task: MakeTask, tokenizer: Tokenizer) -> None:
    """To be learnt: else truncation, which keeps the end, could leave nothing to learn."""
    talk = [{"role": "user", "content": "ba"}, {"role": "assistant", "content": "fe"}]
    task = make_task("generation", data={"over_long": "truncate", "max_tokens": 40})
    (short,), (long,) = (task.examples(row(messages=messages)) for messages in
                         (talk, [*talk, {"role": "user", "content": "gio " * 50}]))  # fmt: skip
    assert long.ids.tolist() == short.ids.tolist()
    assert long.mass == short.mass > 0
    more = row(messages=[*talk, {"role": "user", "content": "gio"}])
    assert tokenizer.decode(task.query(more)).endswith("fe<|endoftext|><|user|>\ngio\n<|assistant|>\n")
    assert task.query(task.learnt(more)) == task.query(row(messages=talk))
    assert task.gold(more) == "fe"


def test_an_answer_has_no_token_that_stands_for_no_text(make_task: MakeTask, tokenizer: Tokenizer) -> None:
    task = make_task("generation", max_new_tokens=3)
    model = build_model(task.config.model, 5, torch.device("cpu"))
    (unknown,) = tokenizer.unreachable
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.copy_(model.head.weight[unknown] * 99)  # by far the likeliest token
    (answer,) = task.answers(model, [task.query(row(prompt="ba"))], 1)
    assert tokenizer.decode([unknown]) not in answer["completion"]
