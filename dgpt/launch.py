"""Starting the processes of a run on this node: in this one if one is enough, else by launch/torchrun.sh."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from dgpt.errors import UserError
from dgpt.scripts import script
from dgpt.watch.runtime import built_for_gpus, nodes, under_torchrun


def visible_gpus() -> int:
    """As torch counts them; a build without GPUs need not be imported for it, which takes seconds."""
    if not built_for_gpus():
        return 0
    import torch

    return torch.cuda.device_count()


def local_processes(nproc: int | None) -> int:
    """Processes to start on this node: `nproc` if given, else one for each visible GPU, and one on a CPU.

    Raises UserError if `nproc` is not from 1 to the number of GPUs (where there are GPUs).
    """
    gpus = visible_gpus()
    wanted = max(1, gpus) if nproc is None else nproc
    if wanted < 1 or (gpus and wanted > gpus):
        raise UserError(
            f"--nproc = {wanted}, and this machine shows {gpus} GPUs",
            rule="at least one process, and at most one for each visible GPU",
            fix=f"leave --nproc away to use all {gpus}" if gpus else "give --nproc 1 or more",
        )
    return wanted


def needs_torchrun(processes: int) -> bool:
    """Whether this process is to start others: more than one here, or several nodes (NNODES), and not started so."""
    return not under_torchrun() and (processes > 1 or nodes() > 1)


def launch(command: Sequence[str], processes: int) -> NoReturn:
    """Become `launch/torchrun.sh *command` with `processes` workers here; a command is ["-m", "dgpt.cli", *arguments].

    This process is replaced, not a parent: signals reach the agent of the workers directly, its exit code is the exit
    code of the command, and when it is killed the kernel ends the workers.
    """
    settings = [f"NPROC_PER_NODE={processes}", f"PYTHON={sys.executable}"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp("env", ["env", *settings, "bash", str(script("launch/torchrun.sh")), *command])
