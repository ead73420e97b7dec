"""Stopper: signals and the stop file. That several ranks stop at one step is in tests/launch/test_launch.py."""

import os
import signal
from pathlib import Path

import pytest
import torch

from dgpt.train import stop
from dgpt.train.stop import Stopper

SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers_restored():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stopper(folder: Path, *, is_main: bool = True) -> Stopper:
    return Stopper(folder, is_main=is_main, world_size=1, device=torch.device("cpu"))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_the_next_step_boundary(tmp_path: Path, number: signal.Signals) -> None:
    with stopper(tmp_path) as one:
        assert not one.agreed()
        os.kill(os.getpid(), number)
        assert one.reason == ""
        assert one.agreed()
        assert one.reason == number.name


def test_more_signals_during_the_save_and_after_it_do_no_harm(tmp_path: Path) -> None:
    with stopper(tmp_path) as one:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert one.agreed()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
    for number in (*SIGNALS, signal.SIGTERM):
        os.kill(os.getpid(), number)


def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    with stopper(tmp_path):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_given_back_after_a_run_that_was_not_stopped(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stopper(tmp_path) as one:
        assert [signal.getsignal(number) for number in SIGNALS] != before
        assert not one.agreed()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_stop_file_stops_once_and_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "FILE_CHECK_SECONDS", 0.0)
    with stopper(tmp_path) as one:
        assert not one.agreed()
        (tmp_path / "stop").touch()
        assert one.agreed()
        assert one.reason == "the stop file"
    assert not (tmp_path / "stop").exists()


def test_only_rank_0_looks_for_the_file(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    with stopper(tmp_path, is_main=False) as one:
        assert not one.agreed()
    assert (tmp_path / "stop").exists()


def test_save_file_saves_once_and_does_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "FILE_CHECK_SECONDS", 0.0)
    with stopper(tmp_path) as one:
        (tmp_path / "save").touch()
        assert not one.agreed()
        assert (one.save, one.reason) == (True, "")
        assert not (tmp_path / "save").exists()
        assert not one.agreed()
        assert not one.save


def test_a_stop_wins_over_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "FILE_CHECK_SECONDS", 0.0)
    with stopper(tmp_path) as one:
        (tmp_path / "save").touch()
        (tmp_path / "stop").touch()
        assert one.agreed()
        assert (one.save, one.reason) == (False, "the stop file")
