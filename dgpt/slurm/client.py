"""The commands of Slurm, and what they print as plain data. Works with Slurm 20.11 and later (no --json)."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

PATIENCE_SECONDS = 60.0  # slurmctld may be busy
AWAY_SECONDS = 1800.0  # for which a job waits for slurmctld: an update, a move to another machine
RETRY_SECONDS = 10.0  # meanwhile
T = TypeVar("T")
_FIELD = re.compile(r"(?:^|\s)([A-Z][\w/:-]*)=((?:\S|\s(?![A-Z][\w/:-]*=))*)")


class SlurmError(RuntimeError):
    """A command of Slurm failed; the text is what it said."""


class NoSlurmError(SlurmError):
    """There is no such command here."""


def call(
    *command: str, seconds: float = PATIENCE_SECONDS, text: str = "", variables: Mapping[str, str] | None = None
) -> str:
    """Standard output of a command that gets `text` as its input and more environment variables. Raises SlurmError."""
    name = command[0]
    if shutil.which(name) is None:
        raise NoSlurmError(f"there is no command '{name}' on this machine")
    settings = [f"{key}={value}" for key, value in (variables or {}).items()]
    words = ["env", *settings, *command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, input=text, check=False)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{name} gave no answer within {seconds:.0f} s") from None
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise SlurmError(f"{name}: {said.removeprefix(f'{name}: ')}")
    return done.stdout


def fields(line: str) -> dict[str, str]:
    """A line of `scontrol show ... -o`: Name=value, where a value may hold spaces."""
    return {match[1]: match[2].strip() for match in _FIELD.finditer(line)}


def job_record(job: str) -> dict[str, str]:
    """What slurmctld knows of a job; it forgets an ended job after MinJobAge (often 5 minutes). Raises SlurmError."""
    return fields(call("scontrol", "show", "job", "-o", job).partition("\n")[0])


def known(job: str) -> dict[str, str]:
    """The same; nothing while slurmctld does not answer."""
    with suppress(SlurmError):
        return job_record(job)
    return {}


def patiently(ask: Callable[[], T], seconds: float) -> T:
    """The answer of slurmctld, which may be away. Raises the last SlurmError after so many seconds."""
    until = time.time() + seconds
    while True:
        try:
            return ask()
        except SlurmError:
            if time.time() >= until:
                raise
        time.sleep(RETRY_SECONDS)


def node_addresses(nodelist: str) -> dict[str, str]:
    """NodeAddr of each node of n[0-3], in the order of the list. Raises SlurmError."""
    names = call("scontrol", "show", "hostnames", nodelist).split()
    records = map(fields, call("scontrol", "show", "node", "-o", nodelist).splitlines())
    found = {record["NodeName"]: record.get("NodeAddr", record["NodeName"]) for record in records if record}
    return {name: found.get(name, name) for name in names}


def submit(options: Sequence[str], variables: Mapping[str, str], script: str = "") -> str:
    """Job id that sbatch gives: for the text `script`, or for a file named last in `options`. Raises SlurmError."""
    said = call("sbatch", "--parsable", *options, text=script, variables=variables)
    return said.strip().splitlines()[-1].partition(";")[0]  # id, or id;cluster
