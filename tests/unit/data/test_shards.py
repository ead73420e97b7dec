"""Reading shards equals reading one long row; what is missing, cut, flipped or of another tokenizer is named."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from dgpt.config import RunConfig
from dgpt.data.shards import open_split
from dgpt.data.tokenizer import Tokenizer, load_tokenizer
from dgpt.errors import UserError


def flip(path: Path) -> str:
    """Change one bit, keep the size; gives the new hash."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("length", [1, 17, 999, 1000, 1001, 2500])
def test_windows_across_shards_equal_the_long_row(prepared: tuple[RunConfig, object], length: int) -> None:
    folder = Path(prepared[0].data.path)
    source = open_split(folder, "train").sources[0]
    row = np.concatenate([np.fromfile(file, "<u2") for file in sorted((folder / "a").glob("train_*.bin"))])
    assert len(row) == source.n_tokens > 3 * source.shard_tokens
    starts = np.array([0, 1, 500, 999, 1000, 1001, len(row) - length])
    assert np.array_equal(source.gather(starts, length), np.stack([row[s : s + length] for s in starts]))
    source.will_need(starts, length)


def test_documents_begin_after_each_end(prepared: tuple[RunConfig, object]) -> None:
    data = open_split(prepared[0].data.path, "train")
    source = data.sources[0]
    row = source.gather(np.array([0]), source.n_tokens)[0]
    assert source.document_starts.tolist() == [0, *(np.flatnonzero(row == data.eod_id)[:-1] + 1).tolist()]
    assert source.n_documents == len(source.document_starts)


def test_a_missing_shard_is_named(copied: Path) -> None:
    (copied / "a" / "train_00001.bin").unlink()
    with pytest.raises(UserError, match=r"a/train_00001.bin' is missing; expected 2000 bytes of sha256 [0-9a-f]{64}"):
        open_split(copied, "train")


def test_a_cut_shard_is_named_without_hashing(copied: Path) -> None:
    os.truncate(copied / "a" / "train_00001.bin", 1999)
    with pytest.raises(UserError, match=r"train_00001.bin' is 1999 bytes; expected 2000"):
        open_split(copied, "train", verify=False)


def test_a_flipped_bit_is_named_with_both_hashes(copied: Path) -> None:
    expected = json.loads((copied / "index.json").read_text())["files"]["b/train_00000.bin"]["sha256"]
    open_split(copied, "train")
    found = flip(copied / "b" / "train_00000.bin")
    with pytest.raises(UserError, match=rf"b/train_00000.bin' is corrupted: expected sha256 {expected}, found {found}"):
        open_split(copied, "train")


def test_a_flipped_tokenizer_is_named(copied: Path) -> None:
    flip(copied / "tokenizer.model")
    with pytest.raises(UserError, match=r"tokenizer.model' is corrupted"):
        open_split(copied, "train")


def test_unchanged_files_are_not_read_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_split(copied, "train")  # a copy has other times: all is hashed, and noted
    hashed: list[Path] = []
    monkeypatch.setattr("dgpt.data.verify.sha256_of", hashed.append)
    open_split(copied, "train")
    assert not hashed
    os.utime(copied / "a" / "train_00000.bin")
    with pytest.raises(AttributeError):  # our stand-in gives no hash
        open_split(copied, "train")
    assert hashed == [copied / "a" / "train_00000.bin"]


def test_a_fresh_preparation_needs_no_hashing(
    prepared: tuple[RunConfig, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgpt.data.verify.sha256_of", lambda path: pytest.fail(f"{path} was hashed"))
    open_split(prepared[0].data.path, "val")


def test_the_tokenizer_must_be_that_of_the_shards(prepared: tuple[RunConfig, object], bpe: Tokenizer) -> None:
    data = open_split(prepared[0].data.path, "train")
    data.check_tokenizer(load_tokenizer(data.path))
    with pytest.raises(UserError, match=rf"tokenizer {bpe.hash[:12]} of 500 ids does not fit .* of 400 ids"):
        data.check_tokenizer(bpe)


def test_a_folder_without_data_and_a_strange_index_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no prepared data\n.*\n.*run `dgpt prepare`"):
        open_split(tmp_path, "train")
    for text in ('{"format": "dgpt-tokens", "version": 99}', "{", "[]"):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(UserError, match=r"index.json' cannot be read"):
            open_split(tmp_path, "train")


def test_weights_go_with_the_prepared_sources(prepared: tuple[RunConfig, object]) -> None:
    path = prepared[0].data.path
    assert open_split(path, "train", weights=[0.0, 0.0]).weights == (0.0, 0.0)
    assert open_split(path, "train", weights=[3, 1]).weights == (3, 1)
    with pytest.raises(UserError, match=r"gives 3 weights, .* holds 2 sources\n.*\n.*list these sources: a, b"):
        open_split(path, "train", weights=[1, 1, 1])


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"files"', '"filez"', "files: field required"),
        ('"uint16"', '"uint77"', "dtype: input should be 'uint16' or 'uint32'"),
        ('"a/train_00000.bin"', '"../train_00000.bin"', "string should match pattern"),
        ('"a/train_00000.bin"', '"/etc/train.bin"', "string should match pattern"),
        ('"vocab_size": ', '"vocab_size": -', "tokenizer.vocab_size: input should be greater than or equal to 0"),
    ],
)
def test_an_index_that_says_something_else_is_refused(
    prepared: tuple[RunConfig, object], tmp_path: Path, old: str, new: str, problem: str
) -> None:
    text = (Path(prepared[0].data.path) / "index.json").read_text()
    (tmp_path / "index.json").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"index.json' cannot be read: ") as caught:
        open_split(tmp_path, "train")
    assert problem in str(caught.value)
