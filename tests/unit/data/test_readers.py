"""Every format gives the same documents, plain or compressed, in one block or many; bad input is named by its place."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from dgpt.config import SourceConfig
from dgpt.data.readers import LONGEST_TEXT_LINE, file_format, reader_for
from dgpt.data.sources import Unit, documents
from dgpt.errors import UserError

TEXTS = [f"text {n} é\n\u2028 {'x' * (7 * n % 50)}" for n in range(300)]


def read(path: Path, block_bytes: int = 1 << 20, **source: object) -> list[str]:
    reader = reader_for(str(path), SourceConfig(path=str(path), **source))  # type: ignore[arg-type]
    blocks = tuple(reader.blocks(path, block_bytes))
    return list(documents(Unit(0, 0, blocks), SourceConfig(path=str(path), **source)))  # type: ignore[arg-type]


def compressed(path: Path, suffix: str) -> Path:
    data = path.read_bytes()
    half = len(data) // 2
    frames = zstandard.ZstdCompressor()
    content = {
        "": data,
        ".gz": gzip.compress(data),
        ".zst": frames.compress(data[:half]) + frames.compress(data[half:]),
    }
    target = path.with_name(path.name + suffix)
    target.write_bytes(content[suffix])
    return target


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_bytes("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode())
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("block_bytes", [1, 1000, 1 << 20])
def test_jsonl_in_blocks_of_any_size(tmp_path: Path, suffix: str, block_bytes: int) -> None:
    assert read(compressed(jsonl(tmp_path / "a.jsonl", TEXTS), suffix), block_bytes) == TEXTS


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("block_bytes", [500, 1 << 20])
@pytest.mark.parametrize("row_group", [7, 1000])
def test_parquet_in_slices_of_row_groups(tmp_path: Path, suffix: str, block_bytes: int, row_group: int) -> None:
    rows = [*TEXTS[:100], None, *TEXTS[100:]]
    table = pa.table({"id": list(range(301)), "content": pa.array(rows, pa.large_string())})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=row_group)
    assert read(compressed(tmp_path / "a.parquet", suffix), block_bytes, field="content") == TEXTS


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_text_file_is_one_document_byte_for_byte(tmp_path: Path, suffix: str) -> None:
    text = "\n a\r\nb\rc\t\u2028d \n\n"
    (tmp_path / "a.md").write_bytes(text.encode())
    assert read(compressed(tmp_path / "a.md", suffix), 1) == [text]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_large_text_file_is_cut_at_line_ends_and_loses_nothing(tmp_path: Path, suffix: str) -> None:
    text = "\n".join(TEXTS)
    (tmp_path / "a.txt").write_bytes(text.encode())
    parts = read(compressed(tmp_path / "a.txt", suffix), document_bytes=1000)
    assert "".join(parts) == text
    assert len(parts) > 5
    assert all(part.endswith("\n") and 1000 <= len(part.encode()) < 1100 for part in parts[:-1])


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_a_line_without_end_is_cut_between_characters(tmp_path: Path, suffix: str) -> None:
    text = "x" + "日" * LONGEST_TEXT_LINE
    (tmp_path / "a.txt").write_bytes(text.encode())
    parts = read(compressed(tmp_path / "a.txt", suffix), document_bytes=3)
    assert "".join(parts) == text
    assert len(parts) == 3


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello\xef\xbb\xbf")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}')
    assert read(tmp_path / "a.txt") == ["hello\ufeff"]
    assert read(tmp_path / "a.jsonl") == ["hello"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"text": "a"', "Expecting"),
        (b'{"txt": "a"}', "no field 'text'"),
        (b'{"text": 3}', "holds int"),
        (b'["text"]', "list indices"),
        (b'{"text": "\xff"}', "not valid Unicode"),
        (b'{"text": "\\ud800"}', "not valid Unicode"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_bad_jsonl_line_is_named(tmp_path: Path, line: bytes, why: str, suffix: str) -> None:
    jsonl(tmp_path / "a.jsonl", TEXTS)
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b"\n" + line + b"\n")  # after an empty line
    with pytest.raises(UserError, match=rf"a.jsonl{suffix}', line 302: .*{why}"):
        read(compressed(tmp_path / "a.jsonl", suffix), 1000)


def test_invalid_text_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\xff"}\n{"text": "b\\ud800"}\n{"text": "\\ud83d\\ude42"}')
    (tmp_path / "a.txt").write_bytes(b"c\xff")
    assert read(tmp_path / "a.jsonl", encoding_errors="replace") == ["a\ufffd", "b\ufffd", "🙂"]
    assert read(tmp_path / "a.txt", encoding_errors="replace") == ["c\ufffd"]


def test_invalid_text_is_named_by_its_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"1234567890\n" * 100 + b"abc\xff")
    with pytest.raises(UserError, match=r"a.txt', byte 1103"):
        read(tmp_path / "a.txt", document_bytes=100)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_cut_compressed_file_is_named(tmp_path: Path, suffix: str) -> None:
    file = compressed(jsonl(tmp_path / "a.jsonl", TEXTS), suffix)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=rf"a.jsonl{suffix}' cannot be read"):
        read(file, 1000)


def test_parquet_mistakes_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "number.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(UserError, match=r"number.parquet', column 'text': int64"):
        read(tmp_path / "number.parquet")
    with pytest.raises(UserError, match=r"column 'body': no such column; it has \['text'\]"):
        read(tmp_path / "number.parquet", field="body")
    with pytest.raises(UserError, match=r"bad.parquet' cannot be read"):
        read(tmp_path / "bad.parquet")


def test_formats_by_name() -> None:
    names = ["a.jsonl.zst", "c4.00000-of-01024.json.gz", "b.parquet", "c.tar.gz", "d.gz", "e", "f.py", "x.csv"]
    found = [file_format(Path(name)) for name in names]
    assert found == [".jsonl", ".json", ".parquet", "", "", "", ".py", ""]
