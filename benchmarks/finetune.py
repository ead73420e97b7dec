"""`dgpt finetune` against simple baselines on the same demo data: run it as `python -m benchmarks.finetune`.

It starts from the model of `make pretrain`, fine-tunes configs/finetune/classify_demo.toml and qa_demo.toml (a finished
run is taken as it is) and asks all arms the whole validation files, which are of modules that no arm was trained on.

classification: scikit-learn's majority class, and logistic regressions on TF-IDF of words, of words and pairs of words,
of pieces of 2 to 5 characters, and of pieces of 1 to 4 of the last 12 characters alone, which was made for this task.
Each has the best C of 1, 10 and 100 on the validation file itself, which favours them. The bar: `dgpt` is above words
by 0.05 in accuracy.
extractive_qa: no answer at all; the first line of the docstring or body; the answer that is most frequent in training
for the same first words of a question, if it stands in the context.

The pretraining has read the validation modules as plain text, without labels or questions.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline

from dgpt.config import FinetuneConfig, load_settings
from dgpt.finetuned import load_finetuned
from dgpt.tasks.extractive_qa import squad_scores
from dgpt.tasks.rows import Row, read_rows

ROOT = Path(__file__).parents[1]
BAR = 0.05
WORDS = r"(?u)\b\w+\b"
LAST = 12  # characters
Rows = Sequence[dict[str, Any]]
Line = tuple[str, float, float]


def ending(text: str) -> str:
    """The last characters, with a sign where they end."""
    return f"{text[-LAST:]}$"


FEATURES: dict[str, dict[str, Any]] = {
    "TF-IDF of words": {"token_pattern": WORDS},
    "TF-IDF of words and pairs": {"token_pattern": WORDS, "ngram_range": (1, 2)},
    "TF-IDF of 2 to 5 characters": {"analyzer": "char_wb", "ngram_range": (2, 5), "min_df": 2},
    "the last 12 characters": {"analyzer": "char", "ngram_range": (1, 4), "preprocessor": ending},
}


def trained(name: str, overrides: Sequence[str]) -> tuple[FinetuneConfig, float]:
    """The recipe's settings, once it is trained, and the seconds that this took."""
    path, start = ROOT / f"configs/finetune/{name}.toml", time.perf_counter()
    subprocess.run([sys.executable, "-m", "dgpt.cli", "finetune", str(path), *overrides], check=True)
    return load_settings(FinetuneConfig, path, overrides), time.perf_counter() - start


def rows_of(config: FinetuneConfig, part: str) -> Rows:
    return [row.values for row in read_rows(Path(config.data.path, f"{part}.jsonl"))]


def answers(config: FinetuneConfig, rows: Rows) -> list[dict[str, Any]]:
    model = load_finetuned(config.run_dir)
    queries = [model.task.query(Row(f"row {number}", row)) for number, row in enumerate(rows)]
    return [dict(answer) for answer in model.answers(queries)]


def classification(config: FinetuneConfig) -> Iterable[Line]:
    """Accuracy and macro F1 of each arm."""
    train, validation = rows_of(config, "train"), rows_of(config, "validation")
    truth = [row["label"] for row in validation]

    def line(name: str, predicted: Sequence[str]) -> Line:
        return name, float(accuracy_score(truth, predicted)), float(f1_score(truth, predicted, average="macro"))

    yield line("majority", fitted(DummyClassifier(strategy="most_frequent"), train, validation))
    for name, settings in FEATURES.items():
        models = [make_pipeline(TfidfVectorizer(sublinear_tf=True, **settings), LogisticRegression(C=c, max_iter=3000))
                  for c in (1, 10, 100)]  # fmt: skip
        yield max((line(name, fitted(model, train, validation)) for model in models), key=lambda found: found[1])
    yield line("dgpt finetune", [answer["label"] for answer in answers(config, validation)])


def fitted(model: Any, train: Rows, validation: Rows) -> list[str]:
    model.fit([row["text"] for row in train], [row["label"] for row in train])
    return list(model.predict([row["text"] for row in validation]))


def extractive_qa(config: FinetuneConfig) -> Iterable[Line]:
    """Exact match and F1 of each arm."""
    train, validation = rows_of(config, "train"), rows_of(config, "validation")
    golds = [row["answers"]["text"] for row in validation]
    usual = defaultdict[str, Counter[str]](Counter)
    for row in train:
        usual[kind_of(row)].update(row["answers"]["text"][:1] or [""])

    def line(name: str, predicted: Sequence[str]) -> Line:
        scores = squad_scores(golds, predicted)
        return name, scores["exact_match"], scores["f1"]

    yield line("no answer", ["" for _ in validation])
    yield line("first line", [first_line(row["context"]) for row in validation])
    yield line("most frequent in training", [frequent(usual[kind_of(row)], row["context"]) for row in validation])
    yield line("dgpt finetune", [answer["answer"] for answer in answers(config, validation)])


def kind_of(row: dict[str, Any]) -> str:
    return " ".join(row["question"].split()[:2])


def first_line(context: str) -> str:
    """The first line below the signature, without quotes."""
    lines = [
        line.strip().strip("\"'") for line in context.split("\n") if not line.lstrip().startswith(("class ", "def "))
    ]
    return next(filter(None, lines), "")


def frequent(counts: Counter[str], context: str) -> str:
    return next((answer for answer, _ in counts.most_common() if answer and answer in context), "")


def table(title: str, columns: str, lines: Iterable[Line]) -> list[Line]:
    print(f"\n{title}\n\n| arm | {columns} |\n|---|---|---|", flush=True)
    printed = []
    for line in lines:
        printed.append(line)
        print(f"| {line[0]} | {line[1]:.3f} | {line[2]:.3f} |", flush=True)
    return printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="runs/demo", help="the pretrained model (default: runs/demo)")
    parser.add_argument("--tasks", nargs="+", default=["classify", "qa"], choices=("classify", "qa"))
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings of both recipes")
    options = parser.parse_args()
    overrides = [f"base={json.dumps(options.base)}", *options.overrides]
    if "classify" in options.tasks:
        config, seconds = trained("classify_demo", overrides)
        lines = table(f"Classification: {seconds:.0f} s of fine-tuning", "accuracy | macro F1", classification(config))
        scores = {name: accuracy for name, accuracy, _ in lines}
        above = scores["dgpt finetune"] - scores["TF-IDF of words"]
        print(f"\ndgpt is {above:+.3f} above words; the bar is {BAR} {'met' if above >= BAR else 'missed'}", flush=True)
    if "qa" in options.tasks:
        config, seconds = trained("qa_demo", overrides)
        table(f"Question answering: {seconds:.0f} s of fine-tuning", "exact match | F1", extractive_qa(config))


if __name__ == "__main__":
    main()
