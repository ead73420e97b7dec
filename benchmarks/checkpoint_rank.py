"""One rank of the checkpoint benchmark, in a process of its own: it does what it is told and says how long it took."""

import os
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from benchmarks.checkpoint_state import Topology, config_of, expected, shapes_of, state_of
from benchmarks.memory import give_freed_memory_back, peak, reset_peak
from dgpt import runtime as processes
from dgpt.checkpoint import Checkpointer, Meta, find_latest, load
from dgpt.checkpoint.files import step_folder
from dgpt.checkpoint.peers import Peers

CHUNK_BYTES = 8 << 20  # of the plain reads and writes
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Job:
    """A rank to start. lean: freed memory goes back at once, so that the peak counts what is held."""

    topology: Topology
    rank: int
    port: int
    gb: float
    folder: Path
    lean: bool


@dataclass(frozen=True)
class Done:
    """One operation of one rank. stall: how long the caller was kept, where the rest went on in the background.

    copy: seconds of one memory copy of the rank's state, just before or just after, in turn. after: seconds from the
    commit of a save until its files were read back.
    """

    seconds: float
    stall: float
    copy: float
    after: float
    peak_bytes: int  # above what the process held before
    state_bytes: int  # of this rank


def serve(job: Job, pipe: Connection) -> None:
    """Body of the process: answer each (operation, argument) with a Done, or with the text of an error."""
    log = os.open(job.folder / f"{job.topology}_{job.rank}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    os.environ.update(
        RANK=str(job.rank), LOCAL_RANK=str(job.rank), WORLD_SIZE=str(job.topology.ranks), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(job.port), GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1",
    )  # fmt: skip
    try:
        torch.set_num_threads(1)
        processes.die_with_parent()
        rank = Rank(job, processes.start(600))
        while (message := pipe.recv()) is not None:
            pipe.send(rank.measure(*message))
    except Exception:
        pipe.send(traceback.format_exc())
    os._exit(0)  # leaves out the ends of libraries


class Rank:
    """The state of a rank, and each way to save and to load it."""

    def __init__(self, job: Job, runtime: processes.Runtime) -> None:
        if job.lean:
            give_freed_memory_back()
        self.job, self.config = job, config_of(job.gb)
        self.flats, self.fragments = state_of(shapes_of(self.config), job.topology, job.rank)
        self.bytes = sum(flat.nbytes for flat in self.flats)
        self.keyed = {f"{job.rank}/{f.state}/{f.name}": f.tensor for f in self.fragments}  # DCP: own keys on each rank
        self.peers = Peers(job.rank, runtime.gather)
        self.turns: Counter[str] = Counter()
        run_dir = job.folder / str(job.topology)
        self.saver = Checkpointer(run_dir, job.rank, job.topology.mesh, "benchmark", keep_last=1000)

    def measure(self, operation: str, argument: Any, copies: bool, forget: bool, check: bool) -> Done:
        """copies: time a memory copy, too; forget: clear the state before; check: compare it after."""
        if forget:
            for flat in self.flats:
                flat.zero_()
        self.turns[operation] += 1
        copy = self._copy() if copies and self.turns[operation] % 2 else 0.0
        before = reset_peak(CPU)
        self._meet()
        began = time.perf_counter()
        stalled = getattr(self, operation)(argument)
        ended = time.perf_counter()
        self.saver.wait()
        after = time.perf_counter() - ended
        if operation == "save" and self.saver.saved_step != argument:
            raise ValueError(f"step {argument} was not saved")
        held = peak(CPU) - before
        if copies and not copy:
            copy = self._copy()
        if check and not all(f.tensor.equal(expected(f)) for f in self.fragments):
            raise ValueError(f"{operation} {argument} did not give back what was saved")
        return Done(ended - began, (stalled or ended) - began, copy, after, held, self.bytes)

    def save(self, step: int) -> float:
        self.saver.save(step, self.fragments, self._meta)
        stalled = time.perf_counter()
        folder, deadline = step_folder(self.saver.root, step), stalled + 600
        while not folder.exists():
            if time.perf_counter() > deadline:
                raise ValueError(f"step {step} was not saved")
            time.sleep(0.001)
        return stalled

    def load(self, run_dir: Path) -> None:
        found = find_latest(run_dir)
        assert found is not None
        load(found, self.fragments, self.config, peers=self.peers)

    def plain_write(self, folder: Path) -> None:
        """Sequential writes of the state's bytes with sha256, then fsync: what a save cannot do without."""
        digest = sha256()
        with open(folder / f"plain_{self.job.rank}", "wb", buffering=0) as file:
            for flat in self.flats:
                content = flat.numpy().view("u1").data
                for begin in range(0, len(content), CHUNK_BYTES):
                    digest.update(content[begin : begin + CHUNK_BYTES])
                    file.write(content[begin : begin + CHUNK_BYTES])
            os.fsync(file.fileno())

    def plain_read(self, run_dir: Path) -> None:
        """Sequential reads with sha256 of this process's share of the files of a checkpoint."""
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for path in sorted(run_dir.glob("checkpoints/step_*/rank_*"))[self.job.rank :: self.job.topology.ranks]:
            digest = sha256()
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    digest.update(buffer[:count])

    def dcp_save(self, folder: Path) -> None:
        dcp.save(self.keyed, storage_writer=dcp.FileSystemWriter(folder))

    def dcp_async_save(self, folder: Path) -> float:
        writer = dcp.FileSystemWriter(folder)
        future: Any = dcp.async_save(self.keyed, storage_writer=writer, async_stager=self.dcp_stager)
        stalled = time.perf_counter()
        future.result()
        return stalled

    def dcp_load(self, folder: Path) -> None:
        dcp.load(self.keyed, storage_reader=dcp.FileSystemReader(folder))

    @cached_property
    def buffers(self) -> list[Tensor]:
        """As large as the state. Touched once a round, as the memory of a save: what was just in use is faster."""
        return [flat.clone() for flat in self.flats]

    @cached_property
    def dcp_stager(self) -> DefaultStager:
        """Kept from save to save, and with it the host memory, as dgpt does."""
        return DefaultStager(StagingOptions(False, False, False, False))  # each of its options wants a GPU

    @cached_property
    def _meta(self) -> Meta:
        config = self.config.model_dump(mode="json")
        return Meta(tokens=0, samples=0, loss=None, data_hash="", tokenizer_hash="", config=config)

    def _copy(self) -> float:
        """Seconds of one memory copy of the rank's state, of all ranks at once."""
        buffers = self.buffers
        self._meet()
        began = time.perf_counter()
        for place, flat in zip(buffers, self.flats, strict=True):
            place.copy_(flat)
        return time.perf_counter() - began

    def _meet(self) -> None:
        if dist.is_initialized():
            dist.barrier()
