"""How a process ends: the exit codes, and the report that a worker leaves for its launcher.

torchrun knows of its workers only whether they failed. A worker therefore leaves its exit code and message in the file
that torchrun names for it, and dgpt.agent, which runs torchrun, turns the reports into one message and one exit code.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from dgpt.errors import StorageError, TrainingError, UserError
from dgpt.watch.runtime import launched

DONE = 0
FAILED = 1
MISTAKE = 2  # of the user: the message says what to change
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped after a save; start again to go on
INTERRUPTED = 130  # Ctrl-C
LAST_SECONDS = 10.0  # of a process whose work is done, whatever hangs
READER_GONE = 141  # as a shell says it of a process that SIGPIPE ended: `dgpt checkpoint show RUN | head`


@dataclass(frozen=True)
class Report:
    """The end of one worker; `message` and `timestamp` (Unix time in whole seconds) are the names torchrun reads."""

    rank: int
    exit_code: int
    message: str
    time: float  # Unix time, seconds
    timestamp: int
    final: bool = False  # a TrainingError: to start again would end the same way


@dataclass(frozen=True)
class Verdict:
    """How the workers of a node ended, in the words of its agent."""

    node: str
    exit_code: int
    text: str  # what the agent printed
    time: float  # of the first failure, Unix time in seconds by the clock of the node
    final: bool  # to start again would end the same way

    def write(self, path: Path) -> None:
        """For the batch script of a job on another node."""
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Verdict":
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def guard(body: Callable[[], int]) -> int:
    """Run `body`, which returns an exit code, as all that this process does; return the code to exit with.

    A UserError or TrainingError is printed without a stack trace. A worker of torchrun prints it nowhere and reports
    it, as all ranks have the same; it also reports STOPPED and exits with 0, so that torchrun waits for the others.
    """
    try:
        code = body()
        sys.stdout.flush()
    except StorageError as error:
        return _end(FAILED, f"dgpt: {error}")
    except UserError as error:
        return _end(MISTAKE, f"dgpt: {error}")
    except TrainingError as error:
        return _end(FAILED, f"dgpt: {error}", final=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return READER_GONE
    except Exception as error:
        return _crash(error)
    return _end(code, "") if code == STOPPED else code


def leave(code: int) -> NoReturn:
    """End this process, which has nothing left to do.

    A worker and its agent end at once: destructors of process groups and threads may wait for ranks that are gone.
    Any other process ends as usual, or after LAST_SECONDS if a thread keeps it.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a full disk is no other end
            stream.flush()
    if launched():
        os._exit(code)
    threading.Thread(target=_cut, args=(code,), daemon=True).start()
    sys.exit(code)


def _cut(code: int) -> None:
    time.sleep(LAST_SECONDS)
    os._exit(code)


def _end(code: int, message: str, *, final: bool = False) -> int:
    if _report(code, message, final=final):
        return DONE if code == STOPPED else code
    if message:
        print(message, file=sys.stderr, flush=True)
    return code


def _crash(error: Exception) -> int:
    """Alone, print the trace. A worker says what happened in a line and leaves the trace to the launcher."""
    trace = "".join(traceback.format_exception(error))
    if not _report(FAILED, trace):
        print(trace, file=sys.stderr, flush=True)
        return FAILED
    from dgpt import runtime

    print(f"rank {runtime.rank()}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(FAILED)  # the destructors of process groups may wait for ranks that are gone


def _report(code: int, message: str, *, final: bool = False) -> bool:
    """Leave a report, if a launcher waits for one."""
    from dgpt import runtime  # it imports torch: not for `dgpt --help`

    path = runtime.report_file()
    if path is None:
        return False
    now = time.time()
    temporary = path.with_suffix(".tmp")
    report = Report(runtime.rank(), code, message, now, int(now), final)
    temporary.write_text(json.dumps(asdict(report)), encoding="utf-8")
    temporary.replace(path)
    return True


def read_reports(folder: Path) -> dict[int, Report]:
    """The reports below torchrun's log folder, by rank, of its last attempt to run the workers."""
    attempts = sorted(folder.glob("*/attempt_*"), key=lambda path: int(path.name.removeprefix("attempt_")))
    paths = attempts[-1].glob("*/error.json") if attempts else ()
    found = (Report(**json.loads(path.read_text(encoding="utf-8"))) for path in paths)
    return {report.rank: report for report in found}
