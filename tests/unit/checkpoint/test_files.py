"""Files are written as given, whether or not the page cache can be passed by; what is read back comes from the disk."""

import io
import os
from errno import EINVAL, ENOSPC
from fcntl import F_GETFL, fcntl
from hashlib import sha256

import pytest
import torch

from dgpt.checkpoint import files
from dgpt.checkpoint.meet import signs


@pytest.fixture
def memory():
    """memory(shift): three chunks and a bit of random bytes, `shift` bytes behind the beginning of a page."""

    def make(shift):
        buffer = torch.randint(256, (3 * files.CHUNK_BYTES + 3 * files.PAGE_BYTES,), dtype=torch.uint8)
        return buffer[-buffer.data_ptr() % files.PAGE_BYTES + shift :][: 3 * files.CHUNK_BYTES + 777].numpy().data

    return make


@pytest.mark.parametrize(("before", "shift"), [(b"", 0), (b"", 8), (b"12345678", 0)])
def test_hashed_file_holds_the_chunks(tmp_path, memory, before, shift):
    content = memory(shift)
    size, digest = files.write_hashed(tmp_path / "file", [before, content, b"end"])
    written = (tmp_path / "file").read_bytes()
    assert written == before + content.tobytes() + b"end"
    assert (size, digest) == (len(written), sha256(written).hexdigest())


class Refusing(io.FileIO):
    """Of a file system that takes `direct` writes past the page cache and refuses those after them."""

    def __init__(self, path, mode, direct, errno):
        super().__init__(path, mode.replace("b", ""))
        self.direct, self.errno = direct, errno

    def write(self, data):
        if fcntl(self, F_GETFL) & os.O_DIRECT:
            if not self.direct:
                raise OSError(self.errno, os.strerror(self.errno))
            self.direct -= 1
        return super().write(data)


@pytest.fixture
def refuse(monkeypatch):
    def refuse(direct, errno):
        opened = lambda path, mode: io.BufferedWriter(Refusing(path, mode, direct, errno))  # noqa: E731
        monkeypatch.setattr(files, "open", opened, raising=False)

    return refuse


@pytest.mark.parametrize("direct", [0, 1])
def test_file_system_may_refuse_direct_writes(tmp_path, memory, refuse, direct):
    """At once, or after one."""
    refuse(direct, EINVAL)
    content = memory(0)
    _, digest = files.write_hashed(tmp_path / "file", [content])
    assert (tmp_path / "file").read_bytes() == content.tobytes()
    assert digest == sha256(content).hexdigest()


def test_full_disk_is_not_taken_for_a_refusal(tmp_path, memory, refuse):
    refuse(1, ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        files.write_hashed(tmp_path / "file", [memory(0)])


def test_the_disk_is_asked_not_the_page_cache(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, advice: told.append((start, length, advice)))
    (tmp_path / "file").write_bytes(os.urandom(3_000_000))
    assert files.hash_on_disk(tmp_path / "file", lambda: None) == files.hash_file(tmp_path / "file")
    assert told == [(0, end, os.POSIX_FADV_DONTNEED) for end in (0, 1 << 20, 2 << 20, 3_000_000)]


def test_reading_back_says_now_and_then_that_it_goes_on(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(files, "SYNC_BYTES", 1 << 20)
    (tmp_path / "file").write_bytes(bytes(5 << 19))
    files.hash_on_disk(tmp_path / "file", lambda: told.append(1))
    assert len(told) == 3  # before the first byte, too


def test_a_rank_whose_clock_is_ahead_hides_no_other(tmp_path):
    for name, seconds in (("ahead", 2e9), ("right", 1e9)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (seconds, seconds))
    before = signs(tmp_path)
    os.utime(tmp_path / "right", (1e9, 1e9 + 1))
    assert signs(tmp_path) != before
