"""Ranks that load together: each file is hashed by one of them, and a damage is everybody's."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dgpt.checkpoint import CheckpointError, find_latest, load, read
from dgpt.checkpoint.peers import Peers, share_out
from dgpt.config import RunConfig
from dgpt.errors import StorageError, UserError


def peers_of(size):
    """Peers that are threads."""
    values, both = [None] * size, threading.Barrier(size, timeout=30)

    def gather_as(rank):
        def gather(value):
            values[rank] = value
            both.wait()
            everyone = list(values)
            both.wait()
            return everyone

        return gather

    return [Peers(rank, gather_as(rank)) for rank in range(size)]


def together(function, arguments):
    """function(*arguments[rank]) of all ranks at once; what each returned or raised."""

    def call(given):
        try:
            return function(*given)
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(call, arguments))


@pytest.mark.parametrize(
    ("touched", "sizes", "shares"),
    [
        ([[0], [1]], [5, 5], [[0], [1]]),
        ([[0, 1], [0, 1]], [5, 5], [[0], [1]]),
        ([[0, 1, 2], [0]], [9, 1, 1], [[1, 2], [0]]),
        ([[0, 1], []], [5, 5], [[0, 1], []]),
        ([[2], [2]], [0, 0, 7], [[2], []]),
    ],
)
def test_share_out(touched, sizes, shares):
    assert [sorted(share) for share in share_out(touched, sizes)] == shares


def test_each_file_is_hashed_once_over_all_ranks(monkeypatch, tmp_path, topology, job, state):
    wide, narrow, saved = topology(0, 2, 1), topology(1, 3, 1), state(seed=1)
    job(wide).save(1, saved)
    found, hashed, real = find_latest(tmp_path), [], read.check_hash
    loading = sys.modules["dgpt.checkpoint.load"]  # the package has a function of that name
    monkeypatch.setattr(loading, "check_hash", lambda path, digest: hashed.append(path.name) or real(path, digest))
    ranks = narrow.cut(state(seed=2))
    ended = together(lambda rank, peers: load(found, rank, RunConfig(), peers=peers),
                     list(zip(ranks, peers_of(3), strict=True)))  # fmt: skip
    assert ended == [None] * 3
    assert sorted(hashed) == [file.name for file in found.manifest.files]
    for rank, expected in zip(ranks, narrow.cut(saved), strict=True):
        assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(rank, expected, strict=True))


def test_what_one_rank_finds_is_raised_on_all_before_anything_is_changed(tmp_path, topology, job, state):
    both = topology(1, 2, 1)
    folder = job(both).save(1, state(seed=1))
    with open(folder / "rank_00001.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    found, untouched = find_latest(tmp_path), state(seed=2)
    ranks = both.cut(untouched)
    ended = together(lambda rank, peers: load(found, rank, RunConfig(), peers=peers),
                     list(zip(ranks, peers_of(2), strict=True)))  # fmt: skip
    assert [type(error) for error in ended] == [CheckpointError] * 2
    assert {error.summary for error in ended} == {ended[1].summary}
    assert "rank_00001.safetensors: expected sha256" in ended[0].summary
    for rank, expected in zip(ranks, both.cut(untouched), strict=True):
        assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(rank, expected, strict=True))


def test_a_file_that_one_rank_cannot_read_after_it_was_hashed_is_everybodys(
    monkeypatch, tmp_path, topology, job, state
):
    both = topology(1, 2, 1)
    job(both).save(1, state(seed=1))
    found, loading = find_latest(tmp_path), sys.modules["dgpt.checkpoint.load"]
    real = loading._read_file

    def read_file(found, number, reads):
        if number == 1:
            raise read.damaged(found.folder / "rank_00001.safetensors", "Input/output error")
        real(found, number, reads)

    monkeypatch.setattr(loading, "_read_file", read_file)
    ended = together(lambda rank, peers: load(found, rank, RunConfig(), peers=peers),
                     list(zip(both.cut(state(seed=2)), peers_of(2), strict=True)))  # fmt: skip
    assert [error.summary for error in ended] == [ended[1].summary] * 2
    assert "Input/output error" in ended[0].summary


def test_a_disk_that_fails_on_one_rank_is_told_on_all_before_any_damage():
    """Then no rank goes on with another checkpoint."""
    problems = [None, CheckpointError("here", "damaged", fix="copy it"), StorageError("fails", rule="", fix="")]

    def load(peers, problem):
        with peers.agreed():
            if problem:
                raise problem

    assert [type(error) for error in together(load, list(zip(peers_of(3), problems, strict=True)))] == [
        StorageError
    ] * 3
