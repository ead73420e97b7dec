"""Disks that take what two ranks save, and then give back other bytes."""

from functools import partial
from pathlib import Path

from benchmarks.faults.cases import Case
from benchmarks.faults.disk import SHARDS, STEPS, TEMPORARY, Disk, nothing_new, one_failure
from benchmarks.faults.points import Point
from benchmarks.faults.run import Ended

REASON = "the disk gives back other bytes than were written"
BYTES = {"first": 0, "last": -1}  # of a shard


def other_bytes_cases(disk: Disk) -> list[Case]:
    """The first bit of a byte is another one when the shard is read back, after the commit."""
    return [Case("disk that gives back other bytes", f"the {name} byte of rank {rank}'s shard",
                 partial(_other_byte, disk, rank, at), (STEPS[1], "a1"), f"step_00000002/{SHARDS[rank]}", REASON)
            for rank in (0, 1) for name, at in BYTES.items()]  # fmt: skip


def _other_byte(disk: Disk, rank: int, at: int, folder: Path) -> Ended:
    run_dir = disk.make(folder, small=False)

    def flip() -> None:
        shard = run_dir / "checkpoints" / "step_00000002" / SHARDS[rank]
        content = bytearray(shard.read_bytes())
        content[at] ^= 0x80
        shard.write_bytes(content)

    def before(saving: int, step: int) -> None:
        if saving == 0 and step == STEPS[1]:
            nothing_new(run_dir)

    begins_to_read = Point("open", f"{TEMPORARY}-proofs/{SHARDS[rank]}")
    return one_failure(disk, run_dir, points={rank: begins_to_read}, act=flip, before=before)
