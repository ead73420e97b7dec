"""Workers forked from their agent, which has imported what they need: a start takes the imports once, not once a rank.

torchrun starts each worker as a new Python; with several to a core, or from a cold network file system, their imports
take most of the time of a restart. docs/decisions/forked-workers.md has what was measured, and what is safe.
"""

import gc
import importlib
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from multiprocessing import get_context
from subprocess import Popen, TimeoutExpired
from typing import IO, Any

import torch
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from dgpt.cli import main
from dgpt.outcome import leave
from dgpt.runtime import die_with_parent
from dgpt.watch.runtime import become, built_for_gpus

COMMAND = ("-u", "-m", "dgpt.cli")  # of torchrun, after the name of Python
FACTORY = "get_subprocess_handler"  # of torch 2.13, which has no option for it
POLL_SECONDS = 0.02
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # by the agent to its workers
HANDLED = (*PASSED_ON, signal.SIGQUIT)  # by the agent, and not so by a worker
# What a training loop imports when it first needs it: torch.optim, the writer, the tokenizer.
LATE = ("torch._dynamo", "torch.utils.tensorboard", "sentencepiece.sentencepiece_model_pb2")
NEEDED = {
    "pretrain": ("dgpt.pretrain", *LATE),
    "finetune": ("dgpt.finetune", *LATE),
    "evaluate": ("dgpt.evaluate",),
}


def preload(verb: str) -> None:
    """Import what the workers of `verb` will need. Nothing here may touch a GPU: CUDA does not outlive a fork."""
    with suppress(Exception):  # a worker that needs what is broken says it better
        for module in NEEDED.get(verb, ()):
            importlib.import_module(module)
        if verb == "pretrain" and not built_for_gpus():  # DeepSpeed looks for devices when it is imported
            from dgpt.parallel.engine_zero import import_deepspeed

            import_deepspeed()
            importlib.import_module("deepspeed.module_inject.auto_ep_layer")  # for a warning
    gc.freeze()  # the collector would write to, and so copy, the pages that workers share


@contextmanager
def forking(workers: list[SubprocessHandler]) -> Iterator[None]:
    """While this lasts, torchrun forks workers that are `dgpt.cli`; it starts any other command as it always does.

    All that it starts are added to `workers`.
    """

    def start(*arguments: Any, **named: Any) -> SubprocessHandler:
        workers.append(ForkedHandler(*arguments, **named))
        return workers[-1]

    before = getattr(api, FACTORY)
    setattr(api, FACTORY, start)
    try:
        yield
    finally:
        setattr(api, FACTORY, before)


class ForkedHandler(SubprocessHandler):
    """What torchrun knows of one worker."""

    def _popen(self, args: tuple[str, ...], env: dict[str, str]) -> Popen[Any]:
        command = (sys.executable, *COMMAND)
        if args[: len(command)] != command:
            return super()._popen(args, env)
        return Worker(args[len(command) :], env, self._stdout, self._stderr)  # type: ignore[return-value]


class Worker:
    """A forked process, with what torchrun uses of subprocess.Popen."""

    def __init__(
        self, arguments: Sequence[str], env: dict[str, str], stdout: IO[str] | None, stderr: IO[str] | None
    ) -> None:
        self._process = get_context("fork").Process(target=_work, args=(arguments, env, stdout, stderr))
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # until the worker does not handle them as the agent
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of threads, which no worker needs
                self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self._process.pid
        self.pid = self._process.pid
        _lead_group(self.pid)  # the worker does it too: whichever is first, torchrun signals the group

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """`Process.join` would also wait for what the worker has started."""
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeoutExpired("dgpt", timeout or 0.0)
            time.sleep(POLL_SECONDS)
        return code


def _lead_group(pid: int) -> None:
    """A Ctrl-C in the terminal reaches the agent alone, which passes it on."""
    try:
        os.setpgid(pid, pid)
    except (PermissionError, ProcessLookupError):  # it has ended
        return


def _work(arguments: Sequence[str], env: dict[str, str], stdout: IO[str] | None, stderr: IO[str] | None) -> None:
    """As `python -u -m dgpt.cli *arguments` in that environment."""
    _lead_group(os.getpid())
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # of a terminal that stops what writes to it in the background
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    become(env)
    die_with_parent()
    for descriptor, file in ((1, stdout), (2, stderr)):
        if file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = _unbuffered(1), _unbuffered(2)
    if torch.cuda._is_in_bad_fork():  # something has touched a GPU in the agent after all
        os.execv(sys.executable, [sys.executable, *COMMAND, *arguments])
    sys.argv = ["dgpt", *arguments]
    leave(main(arguments))


def _unbuffered(descriptor: int) -> TextIOWrapper:
    """As under `-u`: a killed worker leaves its last words."""
    raw = os.fdopen(descriptor, "wb", buffering=0, closefd=False)
    return TextIOWrapper(raw, errors="backslashreplace", write_through=True)
