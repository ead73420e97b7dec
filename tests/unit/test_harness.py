"""A checkpoint as a model of lm-evaluation-harness, on a task of local files."""

import json
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dgpt.cli import main
from dgpt.data.chat import Message, encode, segments
from dgpt.generate import load_model
from dgpt.model.generate import generate_texts
from dgpt.model.sampling import Sampling
from dgpt.outcome import DONE, MISTAKE

pytest.importorskip("lm_eval")
from lm_eval import tasks as harness_tasks
from lm_eval.api.instance import Instance

from dgpt.harness import HarnessModel

ROWS = [{"question": "ba fe", "choices": [" dio", " x", " fe ba"], "answer": n % 3, "text": "ba fe dio " * 30}
        for n in range(5)]  # fmt: skip
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {output}
{rest}
"""
TASKS = {
    "choose": ("multiple_choice", """\
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
"""),
    "roll": ("loglikelihood_rolling", """\
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: bits_per_byte
"""),
    "write": ("generate_until", """\
doc_to_text: question
doc_to_target: question
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
"""),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _their_warnings() -> Iterator[None]:
    """The library's own are none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    for name, (output, rest) in TASKS.items():
        text = TASK.format(name=f"tiny_{name}", file=folder / "rows.jsonl", output=output, rest=rest)
        (folder / f"tiny_{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def model(random_run: Path) -> HarnessModel:
    return HarnessModel(*load_model(random_run), batch_size=3)


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)  # type: ignore[arg-type]


@torch.no_grad()
def direct(model: HarnessModel, context: list[int], end: list[int]) -> tuple[float, bool]:
    """By the definition, a forward pass for each token."""
    total, greedy, ids = 0.0, True, list(context)
    for token in end:
        logits = model.model(torch.tensor([ids[-model.max_length :]]))[0, -1]
        total += float(logits.log_softmax(-1)[token])
        greedy &= int(logits.argmax()) == token
        ids.append(token)
    return total, greedy


def test_loglikelihood_is_the_direct_computation(model: HarnessModel) -> None:
    tokenizer = model.tokenizer
    pairs = [("ba fe", " dio x"), ("ba", " fe"), ("", "ba fe ba"), ("ba fe " * 9 + "ba", " dio")]
    greedy = next(generate_texts(model.model, tokenizer, ["ba fe"], Sampling(3, temperature=0))).text
    pairs.append(("ba fe", greedy))
    results = model.loglikelihood([request("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    for (context, end), (value, is_greedy) in zip(pairs, results, strict=True):
        before = tokenizer.encode(context) or [tokenizer.eod_id]
        whole = tokenizer.encode(context + end)[len(before) * bool(context) :]
        expected, expected_greedy = direct(model, before, whole)
        assert value == pytest.approx(expected, abs=1e-4)
        assert is_greedy == expected_greedy


def test_a_long_context_loses_its_beginning(model: HarnessModel) -> None:
    context, end = [5 + n % 90 for n in range(150)], [7, 8, 9]
    ((value, _),) = model._loglikelihood_tokens([(("", ""), context, end)], disable_tqdm=True)
    kept = [*context, *end][-(model.max_length + 1) : -len(end)]
    assert value == pytest.approx(direct(model, kept, end)[0], abs=1e-4)


def test_rolling_scores_each_token_once(model: HarnessModel) -> None:
    text = "ba fe dio "
    (value,) = model.loglikelihood_rolling([request("loglikelihood_rolling", text)], disable_tqdm=True)
    expected, _ = direct(model, [model.eot_token_id], model.tok_encode(text))
    assert value == pytest.approx(expected, abs=1e-4)
    long, short = model.loglikelihood_rolling([request("", text * 30), request("", text)], disable_tqdm=True)
    assert short == pytest.approx(expected, abs=1e-4)
    assert long < 10 * short


def test_generate_until(model: HarnessModel) -> None:
    wishes = {"until": ["e"], "max_gen_toks": 6, "do_sample": False}
    requests = [request("generate_until", context, wishes) for context in ("ba fe", "dio", "ba " * 200)]
    texts = model.generate_until(requests, disable_tqdm=True)
    expected = [c.text for c in generate_texts(model.model, model.tokenizer, ["ba fe", "dio"],
                                               Sampling(6, temperature=0), stop_strings=["e"])]  # fmt: skip
    assert texts[:2] == expected
    assert len(texts) == 3


def test_half_of_the_context_is_for_the_prompt_and_what_is_cut_is_told(
    model: HarnessModel, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the harness's own 256 new tokens, more than this model reads at all."""
    long, room = "ba fe dio " * 60, model.max_length // 2
    (text,) = model.generate_until([request("generate_until", long, {"until": []})], disable_tqdm=True)
    prompt = model.tok_encode(long)[-room:]
    (expected,) = generate_texts(model.model, model.tokenizer, [prompt], Sampling(256, temperature=0))
    assert (text, len(prompt)) == (expected.text, 48)
    assert capsys.readouterr().err.startswith("cut 1 of 1 prompts at their beginning")
    model.generate_until([request("generate_until", "ba fe", {"until": []})], disable_tqdm=True)
    assert capsys.readouterr().err == ""


def test_a_conversation_becomes_the_ids_of_the_template(model: HarnessModel) -> None:
    talk: list[Message] = [{"role": "user", "content": "ba"}, {"role": "assistant", "content": "fe"},
                           {"role": "user", "content": "dio"}]  # fmt: skip
    chat = HarnessModel(model.model, model.tokenizer)
    ids = chat.tok_encode(chat.apply_chat_template([dict(message) for message in talk]))  # type: ignore[arg-type]
    assert ids == encode(segments(talk, answer=True), model.tokenizer)[0]


def test_the_verb_runs_local_tasks(
    random_run: Path, tasks: Path, model: HarnessModel, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"tiny_{name}" for name in TASKS]
    options = ["--lm-eval", *names, "--include-path", str(tasks), "--json"]
    assert main(["evaluate", str(random_run), *options]) == DONE
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])["tasks"]
    context = model.tok_encode("ba fe")
    likelihoods = [direct(model, context, model.tok_encode("ba fe" + c)[len(context) :])[0] for c in ROWS[0]["choices"]]
    best = max(range(3), key=likelihoods.__getitem__)
    assert measured["tiny_choose"]["acc"] == pytest.approx(sum(row["answer"] == best for row in ROWS) / len(ROWS))
    assert measured["tiny_roll"]["bits_per_byte"] > 0
    assert measured["tiny_write"]["exact_match"] == 0


def test_their_own_api_knows_the_name(random_run: Path, tasks: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results = lm_eval.simple_evaluate("dgpt", model_args={"path": str(random_run)}, tasks=["tiny_choose"],
                                      task_manager=manager, limit=2)  # fmt: skip
    assert results is not None
    assert results["n-samples"]["tiny_choose"]["effective"] == 2


def test_an_unknown_task_is_refused(
    random_run: Path, tasks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sought among the user's tasks alone: to read all of the library's takes long."""
    few = partial(harness_tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(harness_tasks, "TaskManager", lambda include_path, **_: few(include_path=include_path))
    assert main(["evaluate", str(random_run), "--lm-eval", "tiny_nothing", "--include-path", str(tasks)]) == MISTAKE
    assert "'tiny_nothing' is no task" in capsys.readouterr().err
