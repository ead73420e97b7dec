"""One pass gives ranges of a file and its hash."""

from hashlib import sha256
from random import Random

import pytest

from dgpt.checkpoint.hashed import HashedReader


@pytest.mark.parametrize("seed", range(200))
def test_any_ranges_give_their_bytes_and_the_hash_of_all(seed, tmp_path):
    random = Random(seed)
    content = random.randbytes(random.choice([0, 1, 7, 100, 1000]))
    (tmp_path / "file").write_bytes(content)
    heard = []
    with open(tmp_path / "file", "rb") as file:
        reader = HashedReader(file, random.randint(1, 64), sha256(), heard.append)
        for _ in range(random.randint(0, 9)):  # gaps and overlaps, up and down
            start, end = sorted(random.randint(0, len(content)) for _ in "ab")
            place = bytearray(end - start)
            reader.fill(start, memoryview(place))
            assert place == content[start:end]
        assert reader.hexdigest() == sha256(content).hexdigest()
    assert sum(heard) == len(content)


@pytest.mark.parametrize("digest", [None, sha256])
@pytest.mark.parametrize("start", [0, 50, 100, 200])
def test_a_file_that_ends_before_is_an_error(start, digest, tmp_path):
    (tmp_path / "file").write_bytes(bytes(100))
    with open(tmp_path / "file", "rb") as file, pytest.raises(OSError, match="ended while it was read"):
        HashedReader(file, 16, digest and digest()).fill(start, memoryview(bytearray(101)))


def test_without_a_digest_nothing_else_is_read(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100))
    with open(tmp_path / "file", "rb", buffering=0) as file:
        HashedReader(file, 16).fill(80, memoryview(bytearray(4)))
        assert file.tell() == 84
