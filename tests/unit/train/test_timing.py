"""Timings adds up what each phase took, against a clock that the test turns."""

import time

import pytest
import torch

from dgpt.train.timing import PHASES, Timings


def test_seconds_add_up_per_phase_and_start_again_after_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 5.0, 7.0, 10.0, 10.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timings = Timings()
    for phase in ("forward", "backward", "forward"):
        with timings(phase):  # type: ignore[arg-type]
            pass
    taken = timings.take()
    assert taken == dict.fromkeys(PHASES, 0.0) | {"forward": 1.5, "backward": 2.0}
    assert set(timings.take().values()) == {0.0}


def test_a_phase_that_fails_is_counted() -> None:
    timings = Timings()

    def broken() -> None:
        with timings("data"):
            time.sleep(0.01)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert timings.take()["data"] >= 0.01


def test_a_rank_s_own_seconds_are_its_data_and_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 5.0, 7.0, 10.0, 14.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    entered: list[tuple[int, str]] = []
    timings = Timings(lambda step, phase: entered.append((step, phase)))
    for timings.done, phase in ((3, "data"), (3, "forward"), (4, "backward")):
        with timings(phase):  # type: ignore[arg-type]
            pass
    assert timings.own() == 3.0
    assert entered == [(3, "data"), (3, "forward"), (4, "backward")]
    timings.take()
    assert timings.own() == 0.0


class FakeEvent:
    """An event of a device on which each forward pass takes 3 ms, and what is between two of them 5 ms."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = FakeEvent.now = FakeEvent.now + (5.0 if FakeEvent.now % 8 == 3 else 3.0)

    def elapsed_time(self, end: "FakeEvent") -> float:
        return end.time - self.time


@pytest.mark.parametrize("passes", [1, 10, 3000])  # the last is more than it keeps events of
def test_on_cuda_forward_passes_are_timed_by_events(monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(FakeEvent, "now", 3.0)
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    timings = Timings(device=torch.device("cuda"))
    for _ in range(2):  # `take` starts again
        for _ in range(passes):
            with timings("forward"):
                pass
            with timings("backward"):
                pass
        assert timings.own() == pytest.approx(0.003 * passes)
        timings.take()
