"""What a job does when its ranks have ended."""

from datetime import datetime

import pytest

from dgpt.outcome import DONE, FAILED, MISTAKE, STOPPED, Verdict
from dgpt.slurm.policy import (
    BARREN_STARTS,
    End,
    Facts,
    blamed,
    deadline,
    decide,
    end_of,
    pause,
    refuse,
    why_slurm_stopped,
)

NODES = ["n0", "n1"]
CRASH = End(FAILED, "Traceback\ndgpt: rank 3 on n1 failed", ("n1",))
KILLED = "dgpt: rank 3 on n1 (process 5) was killed by SIGKILL"
ECC = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
BUG = "IndexError: a\nfailed, exit code 1"  # which any node would fail with
MEMORY = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
SAVED = End(STOPPED, "")
LIMIT = "the time limit comes (SIGUSR1)"


def said(node: str, code: int, text: str = "", time: float = 0.0, *, final: bool = False) -> Verdict:
    return Verdict(node, code, text, time, final)


def words(*verdicts: Verdict) -> dict[str, Verdict]:
    return {verdict.node: verdict for verdict in verdicts}


@pytest.mark.parametrize(
    ("verdicts", "srun", "end"),
    [
        ([said("n0", DONE), said("n1", DONE)], 0, End(DONE, "")),
        ([said("n0", STOPPED), said("n1", STOPPED)], 0, End(STOPPED, "")),
        ([said("n0", FAILED, KILLED, 9.0), said("n1", FAILED, KILLED, 8.0)], 1, End(FAILED, KILLED, ("n1",))),
        ([said("n0", 143, "x", 1.0), said("n1", FAILED, ECC, 8.0)], 1, End(FAILED, ECC, ("n1",))),
        ([said("n0", FAILED, "a", final=True), said("n1", FAILED, "b", 1.0)], 1, End(FAILED, "a", (), True)),
        ([said("n0", DONE), said("n1", FAILED, "IndexError: a\nfailed, exit code 1")], 1, End(FAILED, BUG, ())),
        ([said("n0", DONE), said("n1", FAILED, MEMORY)], 1, End(FAILED, MEMORY, ())),
        ([said("n0", MISTAKE, "all of it"), said("n1", MISTAKE, "n1: all")], 2, End(MISTAKE, "all of it", final=True)),
        ([said("n1", MISTAKE, "no folder")], 2, End(MISTAKE, "no folder", final=True)),
    ],
)
def test_one_end_from_the_words_of_the_nodes(verdicts: list[Verdict], srun: int | None, end: End) -> None:
    assert end_of(words(*verdicts), NODES, srun) == end


@pytest.mark.parametrize("srun", [137, None])
def test_a_node_without_a_word_is_the_suspect_whatever_the_others_blame(srun: int | None) -> None:
    end = end_of(words(said("n0", FAILED, "dgpt: rank 0: connection closed", 1.0)), NODES, srun)
    assert (end.code, end.suspects) == (FAILED, ("n1",))
    assert end.text.splitlines()[-1].startswith("n1 left no word")


@pytest.mark.parametrize("text", [KILLED, ECC, "dgpt: hang: rank 3 on n1 (process 5) has stood in 'step'"])
def test_a_node_that_says_what_began_on_it_is_the_suspect_though_srun_has_killed_the_others(text: str) -> None:
    assert end_of(words(said("n1", FAILED, text)), NODES, 137) == End(FAILED, text, ("n1",))


def test_an_abort_of_a_rank_that_waited_for_a_lost_node_does_not_blame_its_own() -> None:
    aborted = KILLED.replace("SIGKILL", "SIGABRT")
    assert end_of(words(said("n1", FAILED, aborted)), NODES, 137).suspects == ("n0",)


def test_a_hang_where_nobody_is_missing_blames_no_node() -> None:
    text = "dgpt: hang: all 4 ranks have stood in 'step' of step 57 for 7 s"
    assert end_of({"n0": said("", FAILED, text)}, NODES, 137) == End(FAILED, text)


@pytest.mark.parametrize(("why", "suspects"), [("", ("n1",)), ("requeued", ("n1",)), (LIMIT, ()), ("scancel", ())])
def test_nodes_are_not_to_blame_for_a_save_that_slurm_cut_off(why: str, suspects: tuple[str, ...]) -> None:
    assert blamed(CRASH, Facts(stopped_by=why)) == suspects


@pytest.mark.parametrize("text", ["dgpt: SIGUSR1 ended the workers before they could save\nn1 left no word: x",
                                  "n0, n1 left no word: the launcher", "srun ended with 1", ""])  # fmt: skip
def test_ranks_that_slurm_ends_before_they_have_saved_have_not_failed(text: str) -> None:
    end = End(FAILED, text, ("n1",))
    assert not end.failed
    assert decide(end, Facts(stopped_by=LIMIT)).reason == f"{LIMIT}, before the ranks could save"
    assert blamed(end, Facts(stopped_by=LIMIT)) == ()


@pytest.mark.parametrize(("text", "suspects"), [(KILLED, ("n1",)), (ECC, ("n1",)), ("OSError: No space left", ()),
                                                (KILLED.replace("KILL", "USR1"), ())])  # fmt: skip
def test_what_fails_while_the_ranks_save_is_said(text: str, suspects: tuple[str, ...]) -> None:
    end = End(FAILED, f"Traceback\n{text}", ("n1",))
    for facts in (Facts(stopped_by=LIMIT), Facts(stopped_by="scancel", cancelled=True)):
        assert decide(end, facts).reason.endswith(f", before the ranks could save: {text.removeprefix('dgpt: ')}")
        assert blamed(end, facts) == suspects


def test_nodes_that_were_interrupted_before_there_was_anything_to_save_are_no_finished_run() -> None:
    assert end_of(words(said("n0", 138, "SIGUSR1 ended the workers"), said("n1", 138)), NODES, 138).code == FAILED
    assert end_of({}, NODES, None).code == FAILED


def test_no_node_is_to_blame_where_srun_started_nothing() -> None:
    assert end_of({}, NODES, 1).suspects == ()
    assert end_of(words(said("n0", 143)), NODES, 1).suspects == ("n1",)


@pytest.mark.parametrize(
    ("end", "facts", "action", "code"),
    [
        (End(DONE, ""), Facts(stopped_by=LIMIT), "end", DONE),
        (End(MISTAKE, "x"), Facts(nodes_answer=True), "end", MISTAKE),
        (SAVED, Facts(stopped_by=LIMIT), "requeue", STOPPED),
        (SAVED, Facts(), "end", STOPPED),  # dgpt stop
        (SAVED, Facts(stopped_by="scancel", cancelled=True), "end", STOPPED),
        (CRASH, Facts(stopped_by="scancel", cancelled=True), "end", FAILED),
        (CRASH, Facts(stopped_by=LIMIT), "requeue", FAILED),  # nothing to save yet, or the save was too slow
        (CRASH, Facts(nodes_answer=True), "again", FAILED),
        (CRASH, Facts(nodes_answer=True, barren=1), "again", FAILED),
        (CRASH, Facts(nodes_answer=True, barren=2), "requeue", FAILED),  # perhaps other nodes help
        (CRASH, Facts(nodes_answer=True, barren=3), "end", FAILED),
        (CRASH, Facts(nodes_answer=False), "requeue", FAILED),
        (CRASH, Facts(nodes_answer=True, replaceable=True), "requeue", FAILED),  # others will do better
        (End(FAILED, "not finite", final=True), Facts(nodes_answer=True), "end", FAILED),
        (End(FAILED, "taken over", final=True), Facts(stopped_by=LIMIT), "requeue", FAILED),
        (SAVED, Facts(stopped_by=LIMIT, barren=3), "end", FAILED),  # the time limit is too short for a step
        (SAVED, Facts(stopped_by=LIMIT, successors=2), "end", STOPPED),  # the chain goes on
        (CRASH, Facts(successors=2), "requeue", FAILED),
    ],
)
def test_what_is_done(end: End, facts: Facts, action: str, code: int) -> None:
    decision = decide(end, facts)
    assert (decision.action, decision.code) == (action, code)
    assert decision.reason
    goes_on = action != "end" or facts.successors > 0
    assert decision.ends_chain == (not goes_on)


def test_starts_without_progress_come_after_growing_pauses() -> None:
    assert [pause(barren) for barren in range(3)] == [0.2, 5.0, 10.0]


def test_a_run_that_slurm_itself_starts_again_and_again_is_refused() -> None:
    assert refuse(BARREN_STARTS - 1, "node lost") is None
    refusal = refuse(BARREN_STARTS, "node lost")
    assert refusal is not None
    assert "3 starts in a row" in refusal.reason
    assert "node lost" in refusal.reason


@pytest.mark.parametrize(
    ("signal", "record", "why", "cancelled"),
    [
        ("", {"JobState": "RUNNING", "PreemptTime": "None"}, "", False),
        ("SIGUSR1", {"JobState": "RUNNING", "PreemptTime": "None"}, LIMIT, False),
        ("SIGTERM", {"JobState": "COMPLETING", "Reason": "None", "Restarts": "2"}, "scancel", True),
        ("SIGTERM", {"JobState": "COMPLETING", "Restarts": "3"}, "requeued", False),
        ("SIGTERM", {"JobState": "COMPLETING", "Reason": "TimeLimit", "Restarts": "2"}, "the time limit", False),
        ("", {"PreemptTime": "2026-01-01T00:00:00"}, "preempted by a job of higher priority", False),
        ("SIGTERM", {}, "Slurm sent SIGTERM", False),  # slurmctld does not answer
    ],
)  # fmt: skip
def test_why_slurm_stopped_a_job(signal: str, record: dict[str, str], why: str, cancelled: bool) -> None:
    assert why_slurm_stopped(signal, record, restart=2) == (why, cancelled)


@pytest.mark.parametrize(
    ("state", "left", "waits"),
    [
        ("RUNNING", 300.0, 280.0),
        ("RUNNING", 8.0, 6.0),  # a short grace time of a preemption is the ranks' to save in
        ("COMPLETING", -0.5, float("inf")),  # scancel: its end is the moment of the call
        ("RUNNING", -5.0, float("inf")),
    ],
)
def test_how_long_a_save_is_waited_for(state: str, left: float, waits: float) -> None:
    end = datetime.fromtimestamp(1_800_000_000.0 + left).isoformat()
    assert deadline({"JobState": state, "EndTime": end}, 1_800_000_000.0) - 1_800_000_000.0 == pytest.approx(waits)


def test_a_job_without_a_time_limit_waits_for_the_save() -> None:
    assert deadline({"JobState": "RUNNING", "EndTime": "Unknown"}, 0.0) == deadline({}, 0.0) == float("inf")
