"""events.jsonl, and what is read from it."""

import os
from pathlib import Path

from dgpt.slurm.events import Event, Kind, barren, history, next_restart, record, unfinished, waiting
from dgpt.slurm.requeue import what_ended


def event(kind: Kind, job: str, restart: int = 0, step: int = 0, chain: str = "c") -> Event:
    return Event(1.5, kind, job, chain, restart, ("n0", "n1"), step)


def test_events_are_read_as_they_were_written(tmp_path: Path) -> None:
    events = [event("submit", "7"), Event(2.0, "stop", "7", "c", 0, ("n0",), 40, "why\nso", 75, ("n0",), True)]
    for one in events:
        record(tmp_path, one)
    assert history(tmp_path) == events
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2


def test_a_torn_line_and_fields_of_a_later_version_do_no_harm(tmp_path: Path) -> None:
    record(tmp_path, event("start", "7"))
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "event": "st\n[]\n{}\n')
    line = (tmp_path / "events.jsonl").read_text().splitlines()[0]
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write(line.replace('"job"', '"new": 1, "job"') + os.linesep)
    assert history(tmp_path) == [event("start", "7")] * 2
    assert history(tmp_path / "none") == []


def test_starts_are_numbered_over_all_jobs_of_a_run() -> None:
    assert next_restart([]) == 0
    assert next_restart([event("start", "7", 0), event("stop", "7", 0), event("start", "8", 1)]) == 2


def test_starts_without_a_new_checkpoint_are_counted_from_the_newest_back() -> None:
    steps = [0, 10, 10, 20, 20, 20]
    starts = [event("start", "7", number, step) for number, step in enumerate(steps)]
    assert barren(starts, "c", 20) == 3
    assert barren(starts, "c", 30) == 0  # there is a new one
    assert barren(starts[:3], "c", 10) == 2
    assert barren([event("start", "6", 0, 20, chain="earlier"), *starts], "c", 20) == 3
    assert barren(starts, "submitted anew", 20) == 0


def test_a_start_without_a_word_of_its_end_is_found() -> None:
    start, stop = event("start", "7"), event("stop", "7")
    assert unfinished([start, event("submit", "8"), event("signal", "7")]) == start
    assert unfinished([start, stop]) is None
    assert unfinished([]) is None


def test_jobs_that_wait_for_the_end_of_this_one() -> None:
    events = [event("submit", "7"), event("submit", "8"), event("submit", "9"), event("start", "7")]
    assert waiting(events, "c", "7") == ["8", "9"]
    assert waiting(events, "c", "9") == []
    assert waiting(events, "other", "7") == []


def test_what_ended_a_start_that_said_nothing_of_its_end() -> None:
    start, told = event("start", "7"), Event(2.0, "signal", "7", "c", 0, (), 0, "the time limit comes (SIGUSR1)")
    lost = what_ended([told, start], start, 40)
    assert lost.reason == "the batch script was killed without a signal: its node was lost"
    assert (lost.event, lost.job, lost.code, lost.step, lost.nodes) == ("stop", "7", 1, 40, ("n0", "n1"))
    assert lost.suspects == ("n0",), "the batch script ran there"
    signalled = what_ended([start, told], start, 40)
    assert signalled.reason == "the time limit comes (SIGUSR1); the job was killed before its end"
    assert signalled.suspects == (), "as after a requeue by hand"
