"""What a batch script does when nodes, slurmctld or the file server fail it."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from batches import SCONTROL, SRUN, Batch, end, told

from dgpt.outcome import DONE, FAILED, STOPPED
from dgpt.slurm.events import history

KILLED = "1 0 dgpt: rank 1 on n0 was killed by SIGKILL"
NODES = 'for n in 0 1 2; do echo "n$n idle main*"; done'
NAMES = f'[[ "$1 $2 $3" == "show hostnames (null)" ]] && exit\n{SCONTROL}'


def test_a_node_that_fails_between_checkpoints_is_left_out_by_a_requeue(batch: Batch, fake: Any) -> None:
    """Each start makes progress, so that it would start again on the same nodes for ever."""
    fake("sinfo", NODES)
    asked = fake("scontrol", NAMES)
    code, out = end(batch(*(f"{step} {KILLED}" for step in (20, 40, 60))))
    assert code == FAILED
    assert [event.suspects for event in history(Path("run")) if event.event == "stop"] == [("n0",)] * 2
    assert "requeue 12" in asked()
    assert "update JobId=12 ExcNodeList=n0" in asked()
    assert "left out: n0 until " in out


def test_a_node_that_no_other_can_replace_is_used_again(batch: Batch, fake: Any) -> None:
    fake("sinfo", NODES.replace("0 1 2", "0"))
    fake("scontrol", NAMES)
    assert end(batch(*(f"{step} {KILLED}" for step in (20, 40)), "60 0 0"))[0] == DONE


AWAY = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"
COUNT = "n=$(($(cat count 2>/dev/null || echo 0) + 1)); echo $n >count"


def test_a_job_starts_though_slurmctld_is_away(batch: Batch, fake: Any) -> None:
    fake("scontrol", f"{COUNT}; [[ $n -le 4 ]] && {{ {AWAY}; }}\n{SCONTROL}")
    assert end(batch("100 0 0"))[0] == DONE


def test_a_requeue_waits_for_slurmctld_and_nothing_else_is_tried(batch: Batch, fake: Any) -> None:
    goes = "[[ $1 == requeue && ! -e count ]] && touch down"
    comes = f"[[ -e down ]] && {{ {COUNT}; [[ $n -ge 4 ]] && rm down; }}"
    asked = fake("scontrol", f"{goes}; {comes}\n[[ -e down ]] && {{ {AWAY}; }}\n{SCONTROL}")
    submitted = fake("sbatch", "echo 13")
    code, out = end(batch(*["0 1 0 dgpt: no"] * 2))
    assert code == FAILED
    assert "job 12 is requeued" in out
    assert asked().count("requeue 12") == 2
    assert submitted() == []


def test_nodes_that_do_not_answer_while_slurmctld_is_away_are_not_lost(batch: Batch, fake: Any) -> None:
    fake("scontrol", f"[[ -e down ]] && {{ {AWAY}; }}\n{SCONTROL}")
    probe = "if [[ ${@: -1} == true ]]; then [[ -e asked ]] && rm -f down && exit 0; touch asked down; exit 1; fi"
    fake("srun", f"{probe}\n{SRUN}")
    code, out = end(batch("40 1 0 dgpt: no", "100 0 0"))
    assert (code, "no; all nodes answer; starting again" in out) == (DONE, True)
    assert [line[1] for line in told()] == [0, 0, 1, 1]


def test_a_run_goes_on_after_its_folder_was_gone_for_a_moment(batch: Batch, fake: Any) -> None:
    asked = fake("scontrol", SCONTROL)
    fake("srun", f"{SRUN.replace('exit $code', '')}\nmv run/events.jsonl kept; ln -s events.jsonl run/events.jsonl")
    code, out = end(batch("40 1 0 dgpt: no"))
    assert code == FAILED
    assert "the run folder cannot be used: [Errno 40]" in out
    assert "requeue 12" in asked()


@pytest.mark.parametrize(("lasts", "requeued"), [(True, False), (False, True)])
def test_a_folder_that_cannot_be_used_from_the_start(batch: Batch, fake: Any, lasts: bool, requeued: bool) -> None:
    """No start would be counted, so that it would be requeued for ever where nothing changes by itself."""
    asked = fake("scontrol", SCONTROL)
    Path("run").touch() if lasts else Path("run").symlink_to("run")
    assert end(batch("100 0 0"))[0] == FAILED
    assert ("requeue 12" in asked()) == requeued


def test_ranks_save_though_their_signal_cannot_be_recorded(batch: Batch, fake: Any) -> None:
    fake("srun", SRUN.replace("[[ $code == 75 ]] && break", "[[ -e finish ]] && break"))
    process, file = batch("40 1 30"), Path("run/events.jsonl")
    while not Path("met").exists():
        time.sleep(0.05)
    file.rename("kept")
    file.symlink_to(file.name)
    process.send_signal(signal.SIGUSR1)
    time.sleep(2)
    assert process.poll() is None
    Path("kept").rename(file)
    Path("finish").touch()
    assert end(process)[0] == STOPPED
    assert told()[-1] == ("stop", 0, 40, STOPPED)
