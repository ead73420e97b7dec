"""Ranks that load together: each file is hashed by one of them, and a damage is everybody's."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from types import SimpleNamespace

import pytest
import torch

from dgpt.checkpoint import CheckpointError, find_latest, load, read
from dgpt.checkpoint.peers import Peers, share_out
from dgpt.config import RunConfig
from dgpt.errors import StorageError, UserError

loading = sys.modules["dgpt.checkpoint.load"]  # the package has a function of that name


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


def test_each_file_is_hashed_once_over_all_ranks_and_each_byte_of_it_once(monkeypatch, tmp_path, topology, job, state):
    wide, narrow, saved = topology(0, 2, 1), topology(1, 3, 1), state(seed=1)
    job(wide).save(1, saved)
    found, hashed = find_latest(tmp_path), []

    def digest():
        content = bytearray()
        hashed.append(content)
        return SimpleNamespace(update=content.extend, hexdigest=lambda: sha256(content).hexdigest())

    monkeypatch.setattr(loading, "sha256", digest)
    ranks = narrow.cut(state(seed=2))
    ended = together(lambda rank, peers: load(found, rank, RunConfig(), peers=peers),
                     list(zip(ranks, peers_of(3), strict=True)))  # fmt: skip
    assert ended == [None] * 3
    assert sorted(map(bytes, hashed)) == sorted((found.folder / f.name).read_bytes() for f in found.manifest.files)
    for rank, expected in zip(ranks, narrow.cut(saved), strict=True):
        assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(rank, expected, strict=True))


def damage_last(folder):
    """Only the hash tells."""
    with open(folder / "rank_00001.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")


def damage_header(folder):
    with open(folder / "rank_00001.safetensors", "r+b") as file:
        file.seek(20)
        file.write(b"?")


@pytest.mark.parametrize(("damage", "reason", "untouched"), [
    (damage_last, "expected sha256", False), (damage_header, "its header does not belong", True),
])  # fmt: skip
def test_what_one_rank_finds_is_raised_on_all(damage, reason, untouched, tmp_path, topology, job, state):
    both, before = topology(1, 2, 1), state(seed=2)
    damage(job(both).save(1, state(seed=1)))
    found, ranks = find_latest(tmp_path), both.cut(before)
    ended = together(lambda rank, peers: load(found, rank, RunConfig(), peers=peers),
                     list(zip(ranks, peers_of(2), strict=True)))  # fmt: skip
    assert [type(error) for error in ended] == [CheckpointError] * 2
    assert {error.summary for error in ended} == {ended[1].summary}
    assert f"rank_00001.safetensors: {reason}" in ended[0].summary
    if untouched:
        for rank, expected in zip(ranks, both.cut(before), strict=True):
            assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(rank, expected, strict=True))


def test_a_file_that_one_rank_cannot_read_is_everybodys(monkeypatch, tmp_path, topology, job, state):
    both = topology(1, 2, 1)
    job(both).save(1, state(seed=1))
    found, real = find_latest(tmp_path), loading._read_file

    def read_file(found, to_hash, number, reads):
        if number == 1:
            raise read.damaged(found.folder / "rank_00001.safetensors", "Input/output error")
        real(found, to_hash, number, reads)

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
