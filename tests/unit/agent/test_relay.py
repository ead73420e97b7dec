"""What the agent of a node does with the signals that it gets."""

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from dgpt.agent import node
from dgpt.agent.node import Relay


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """Of an agent that has no worker now."""
    monkeypatch.setattr(node.psutil, "Process", lambda: SimpleNamespace(children=list))
    before = {number: signal.getsignal(number) for number in (*node.PASSED_ON, signal.SIGCHLD)}
    yield Relay()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_before_the_workers_are_there_the_agent_ends(relay: Relay) -> None:
    with pytest.raises(SystemExit, match="143"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_after_their_end_it_goes_on_to_say_how_they_ended(relay: Relay) -> None:
    relay.workers.append(SimpleNamespace())  # type: ignore[arg-type]
    os.kill(os.getpid(), signal.SIGTERM)
    assert relay.received == [signal.SIGTERM]


def test_but_not_while_torchrun_is_about_to_start_others(relay: Relay) -> None:
    relay.workers.append(SimpleNamespace())  # type: ignore[arg-type]
    relay.restarts = True
    with pytest.raises(SystemExit, match="143"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_whoever_insists_is_obeyed(relay: Relay) -> None:
    relay.workers.append(SimpleNamespace())  # type: ignore[arg-type]
    for _ in range(node.PATIENCE - 1):
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(SystemExit, match="130"):
        os.kill(os.getpid(), signal.SIGINT)
