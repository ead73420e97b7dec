"""Who may import whom (docs/architecture.md), and who may read the environment."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "dgpt"
ENTRYPOINTS = {"cli", "verbs", "pretrain", "setup", "resume", "changes", "preview", "generate", "pulse", "run", "start",
               "export", "chat", "evaluate", "harness", "submit", "submit_checks", "finetune", "finetuned",
               "finetune_setup", "lora", "predict"}  # fmt: skip
ALLOWED = {
    "errors": set(),
    "fragments": set(),
    "config": {"errors"},
    "watch": set(),
    "runtime": {"errors", "watch"},
    "lease": {"errors"},
    "storage": {"errors"},
    "tables": set(),
    "progress": set(),
    "model": {"config", "errors"},
    "data": {"config", "errors", "storage"},
    "parallel": {"config", "errors", "fragments", "model", "runtime", "train"},
    "checkpoint": {"config", "errors", "fragments", "model", "runtime", "storage"},
    "huggingface": {"checkpoint", "config", "data", "errors", "model", "storage"},
    "train": {"config", "errors", "model", "watch"},
    "tasks": {"config", "data", "errors", "model"},
    "launch": {"errors", "scripts", "watch"},
    "scripts": set(),
    "slurm": {"config", "doctor", "errors", "kinds", "lease", "outcome", "scripts", "watch"},
    "doctor": {"config", "errors", "kinds", "outcome", "runtime", "tables", "watch"},
    "kinds": {"config"},
    "agent": {"cli", "outcome", "parallel", "runtime", "watch"},
    "outcome": {"errors", "runtime", "watch"},
}
FILES = sorted(ROOT.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_plan(path: Path) -> None:
    part, tree = part_of(path), ast.parse(path.read_text())
    ours = {name.split(".")[1] for name in imports(tree) if name.startswith("dgpt.")} - {part, "__version__"}
    assert part in ENTRYPOINTS | {"__init__"} or ours <= ALLOWED[part]
    if path.stem != "engine_zero":
        assert not any(name.split(".")[0] == "deepspeed" for name in imports(tree))
    if part == "model":
        assert not any(name.startswith("torch.distributed") for name in imports(tree))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_globals_no_environment(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not any(isinstance(node, ast.Global) for node in ast.walk(tree))
    reads = any(isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node in ast.walk(tree))
    assert not reads or path.stem == "runtime"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
