"""Which nodes a next start leaves out."""

from pathlib import Path

import pytest

from dgpt.config import SlurmConfig
from dgpt.slurm.events import Event, history, record
from dgpt.slurm.exclude import Bad, bad_nodes, choose, update, usable
from dgpt.slurm.requeue import warn_successors
from dgpt.slurm.runtime import Job

NOW = 1_800_000_000.0
HOUR = 3600.0
NODES = ("n0", "n1", "n2")
BAD = [Bad("n2", 3, NOW + HOUR, "rank 5 was killed"), Bad("n1", 2, NOW + HOUR, "it left no word")]
EVERYONE = {"n0", "n1", "n2", "n3"}


def failed(*suspects: str, hours_ago: float = 1.0, code: int = 1, unfit: bool = False) -> Event:
    return Event(
        NOW - hours_ago * HOUR, "stop", "7", "c", 0, NODES, 0, "a\nrank 5 was killed", code, suspects, unfit=unfit
    )


@pytest.mark.parametrize(
    ("events", "bad"),
    [
        ([failed("n1")], []),
        ([failed("n1"), failed("n2")], []),
        ([failed("n1", hours_ago=2), failed("n1", "n2")], ["n1"]),
        ([failed("n2"), failed("n1"), failed("n1"), failed("n1"), failed("n2")], ["n1", "n2"]),  # the worst first
        ([failed("n1"), failed("n1", code=75)], []),  # a stop that was asked for
        ([failed("n1", hours_ago=25), failed("n1")], []),
        ([failed("n1", unfit=True)], ["n1"]),
    ],
)
def test_a_node_is_bad_after_two_failures_or_when_it_was_found_unfit(events: list[Event], bad: list[str]) -> None:
    assert [one.node for one in bad_nodes(events, NOW, SlurmConfig())] == bad


def test_settings_say_how_often_and_how_long() -> None:
    events = [failed("n1", hours_ago=3), failed("n1", hours_ago=2)]
    (bad,) = bad_nodes(events, NOW, SlurmConfig())
    assert bad.until == NOW + 22 * HOUR
    assert str(bad).startswith("n1 until 20")
    assert str(bad).endswith(": failed 2 times, the last: rank 5 was killed")
    assert bad_nodes(events, NOW, SlurmConfig(exclude_hours=2.5)) == []
    assert bad_nodes(events, NOW, SlurmConfig(exclude_after=3)) == []
    assert bad_nodes([failed("n1", unfit=True)], NOW, SlurmConfig(exclude_after=0)) == []


@pytest.mark.parametrize(
    ("own", "usable", "needed", "added", "kept"),
    [
        ([], EVERYONE, 2, ("n2", "n1"), ()),
        ([], EVERYONE, 3, ("n2",), ("n1",)),
        ([], EVERYONE, 4, (), ("n2", "n1")),
        (["n1"], EVERYONE, 2, ("n2",), ()),  # the user leaves it out already
        (["n0"], EVERYONE, 2, ("n2",), ("n1",)),
        ([], {"n0", "n3", "n1"}, 2, ("n2", "n1"), ()),  # n2 is down: to leave it out costs nothing
        ([], {"n0", "n3", "n1"}, 3, ("n2",), ("n1",)),
        ([], set(), 2, ("n2", "n1"), ()),
    ],
)
def test_as_many_are_left_out_as_the_job_can_do_without(
    own: list[str], usable: set[str], needed: int, added: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    choice = choose(BAD, own, usable, needed)
    assert (choice.added, choice.kept) == (added, kept)
    assert [text for text in choice.text.splitlines() if text.startswith("not left out")] == [
        f"not left out, as the partition has no more than {needed} nodes to use without it: {bad}"
        for bad in BAD
        if bad.node in kept
    ]


def test_nodes_that_jobs_can_get(fake) -> None:
    states = "n0 idle,n1 allocated,n2 mixed,n3 down,n4 drained,n5 idle*,n6 draining,n7 completing,n8 planned,n9 down*"
    calls = fake("sinfo", f'tr , "\\n" <<<"{states}" | sed "s/$/ main*/"; echo "n20 idle other"')
    assert usable("") == {"n0", "n1", "n2", "n7", "n8"}
    assert "n20" in usable("other")
    assert calls()[-1].endswith("-p other")


SCONTROL = """case "$1 $2" in
  "show hostnames") tr , "\\n" <<<"$3" ;;
  "show job") echo "JobId=$4 NumNodes=2 Partition=main ReqNodeList=(null) ExcNodeList=$(cat exclude)" ;;
  "update "*) sed "s/.*=//" <<<"$3" >exclude ;;
esac"""


@pytest.fixture
def run(tmp_path: Path, fake, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that failed on n1 twice, just now; the user left n0 out of its job."""
    monkeypatch.chdir(tmp_path)
    fake("sinfo", 'for n in 0 1 2 3 4; do echo "n$n idle main*"; done')
    Path("exclude").write_text("n0")
    monkeypatch.setattr("dgpt.slurm.events.now", lambda: NOW)
    for _ in range(2):
        record(tmp_path, failed("n1"))
    return tmp_path


def test_slurm_is_told_and_keeps_what_the_user_left_out(run: Path, fake, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake("scontrol", SCONTROL)
    assert "left out: n1 until" in update("7", "c", run, SlurmConfig())
    assert Path("exclude").read_text() == "n0,n1\n"
    assert [(event.job, event.nodes) for event in history(run) if event.event == "exclude"] == [("7", ("n1",))]
    before = len(calls())
    update("7", "c", run, SlurmConfig())
    assert not any(call.startswith("update") for call in calls()[before:]), "it is told once"
    monkeypatch.setattr("dgpt.slurm.events.now", lambda: NOW + 30 * HOUR)
    update("7", "c", run, SlurmConfig())
    assert Path("exclude").read_text() == "n0\n", "a day later n1 may be used again"


def test_a_node_that_the_job_asks_for_by_name_is_not_left_out(run: Path, fake) -> None:
    calls = fake("scontrol", SCONTROL.replace("ReqNodeList=(null)", "ReqNodeList=n1,n2"))
    assert update("7", "c", run, SlurmConfig()) == ""
    assert not any(call.startswith("update") for call in calls())


def test_a_refusal_is_said(run: Path, fake) -> None:
    fake("scontrol", "echo 'slurm_update error: Access denied' >&2; exit 1")
    assert update("7", "c", run, SlurmConfig()) == (
        "bad nodes could not be left out of job 7: scontrol: slurm_update error: Access denied"
    )


def test_jobs_that_wait_in_a_chain_are_told_too(run: Path, fake) -> None:
    fake("scontrol", SCONTROL)
    for job in ("7", "8"):
        record(run, Event(NOW, "submit", job, "c", 0, (), 0))
    job = Job("7", "c", 0, "n[0-1]", "n0", 1, 0, 1, "")
    (said,) = warn_successors(job, run, SlurmConfig())
    assert "left out: n1" in said
    assert [event.job for event in history(run) if event.event == "exclude"] == ["8"]
