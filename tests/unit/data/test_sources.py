"""Sources are found in a fixed order, and cut into units that do not depend on who reads them."""

import itertools
import json
from pathlib import Path

import pytest

from dgpt.config import SourceConfig
from dgpt.data.sources import documents, find_files, source_names, units
from dgpt.errors import UserError


def texts_by_unit(source: SourceConfig, first: int = 0, skip_rows: int = 0) -> list[list[str]]:
    found = units(0, source, find_files(source), 1000, first, skip_rows)
    return [list(documents(unit, source)) for unit in found]


def texts_of(source: SourceConfig) -> list[str]:
    return list(itertools.chain.from_iterable(texts_by_unit(source)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.txt", "b/1.md", "a.txt", "c.txt", ".hidden/x.txt", "b/.y.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"in {name}")
    (tmp_path / "c.txt").write_text("")
    return tmp_path


def test_a_folder_gives_its_known_visible_files_in_order(folder: Path) -> None:
    assert texts_of(SourceConfig(path=str(folder))) == ["in a.txt", "in b/1.md", "in b/2.txt"]


def test_a_glob_and_a_file(folder: Path) -> None:
    assert texts_of(SourceConfig(path=f"{folder}/**/*.txt")) == ["in a.txt", "in b/2.txt"]
    assert texts_of(SourceConfig(path=f"{folder}/a.txt")) == ["in a.txt"]


def test_nothing_found_and_unknown_formats_are_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    for path in ("none.txt", "*.json", "empty"):
        with pytest.raises(UserError, match="no documents found"):
            find_files(SourceConfig(path=str(folder / path)))
    for path in ("picture.png", "*.p*"):
        with pytest.raises(UserError, match=r"picture.png' has a format that dgpt does not know"):
            find_files(SourceConfig(path=str(folder / path)))


def test_small_files_share_a_unit_and_numbers_count_up(tmp_path: Path) -> None:
    for n in range(50):
        (tmp_path / f"{n:02d}.txt").write_text(f"{n}" * 100)
    source = SourceConfig(path=str(tmp_path))
    found = list(units(3, source, find_files(source), 1000))
    assert [unit.number for unit in found] == list(range(len(found)))
    assert 8 <= len(found) <= 12
    assert [text for unit in found for text in documents(unit, source)] == [f"{n}" * 100 for n in range(50)]
    assert sum(unit.disk_bytes for unit in found) == sum(f.stat().st_size for f in tmp_path.iterdir())


def test_names_are_folders_and_differ() -> None:
    sources = [SourceConfig(builtin="stdlib"), SourceConfig(path="x/web data/*.jsonl.zst"),
               SourceConfig(path="y/books.txt"), SourceConfig(path="z/books.parquet"),
               SourceConfig(dataset="org/set.v1"), SourceConfig(name="../up", path="q.txt")]  # fmt: skip
    assert source_names(sources) == ["stdlib", "web_data", "books", "books_2", "set", "up"]


def test_the_standard_library_is_a_real_corpus() -> None:
    files = find_files(SourceConfig(builtin="stdlib"))
    assert files == sorted(files, key=files.index)
    assert {"json", "asyncio"} <= {file.parent.name for file in files}
    assert not any({"test", "tests", "site-packages"} & set(file.parts) for file in files)
    assert sum(file.stat().st_size for file in files) > 5e6


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A data set as `datasets` finds it in a folder: train and test splits of JSON lines."""
    rows = [{"body": f"row {n} " + "x" * (n % 90)} for n in range(100)]
    rows[10]["body"] = ""
    for split, part in (("train", rows), ("test", rows[:5])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return tmp_path


@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_by_split_and_field_from_any_unit_on(
    dataset: Path, streaming: bool, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    source = SourceConfig(dataset=str(dataset), field="body", streaming=streaming)
    assert texts_of(source)[:2] == ["row 0 ", "row 1 x"]
    assert len(texts_of(source)) == 99  # one is empty
    found = list(units(0, source, [], 1000))
    rows = sum(len(block.texts or ()) for unit in found[:2] for block in unit.blocks)
    assert texts_by_unit(source, first=2, skip_rows=rows) == texts_by_unit(source)[2:]
    test = SourceConfig(dataset=str(dataset), field="body", split="test", streaming=streaming)
    assert len(texts_of(test)) == 5


def test_data_set_mistakes_are_named(dataset: Path) -> None:
    for wrong in ({"split": "nope"}, {"field": "nope"}, {"dataset": str(dataset / "nope")}):
        settings = {"dataset": str(dataset), "field": "body"} | wrong
        with pytest.raises(UserError, match=r"dataset '.*' cannot be loaded"):
            texts_of(SourceConfig(**settings))  # type: ignore[arg-type]
