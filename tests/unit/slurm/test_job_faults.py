"""What a batch script does when nodes, slurmctld or the file server fail it."""

from pathlib import Path
from typing import Any

from batches import SCONTROL, Batch, end

from dgpt.outcome import FAILED
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
    assert end(batch(*(f"{step} {KILLED}" for step in (20, 40)), "60 0 0"))[0] == 0
