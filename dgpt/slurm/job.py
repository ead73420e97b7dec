"""`python -m dgpt.slurm.job`: what the batch script of a job becomes. It starts the ranks with srun, passes signals on,
and when they have ended does what dgpt.slurm.policy decides: end, start again in this allocation, or requeue.

Slurm signals the batch script alone: SIGUSR1 some time before the limit (--signal=B:USR1@...), SIGTERM when it
preempts, cancels or requeues. srun hands SIGUSR1 to its task on each node; SIGTERM to srun would end the step at once.
"""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from errno import EACCES, EDQUOT, EEXIST, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path
from types import FrameType

from dgpt.config import LoopConfig
from dgpt.errors import UserError
from dgpt.kinds import load
from dgpt.outcome import DONE, FAILED, MISTAKE, STOPPED, Verdict, guard
from dgpt.slurm import client, events, exclude, launch, policy, preflight, requeue
from dgpt.slurm.client import SlurmError
from dgpt.slurm.clock import Clock
from dgpt.slurm.events import Event
from dgpt.slurm.policy import Decision, End, Facts
from dgpt.slurm.runtime import Job, die_with_parent, given_addresses, this_job, with_variables

GIVE_UP_SECONDS = 45.0  # after the first failure; Slurm kills the other nodes' tasks after KillWait, normally 30 s
POLL_SECONDS = 0.5
NO_END = End(DONE, "")
LASTING = (EACCES, EPERM, ENOENT, ENOTDIR, EEXIST, EROFS, ENOSPC, EDQUOT)  # as long as nobody mends them


class Batch:
    """One job of a run, from its batch script."""

    def __init__(self, job: Job, config: LoopConfig, script: Path, arguments: Sequence[str]) -> None:
        self.job, self.config, self.script, self.arguments = job, config, script, arguments
        self.run_dir = Path(config.run_dir)
        self.signals: list[int] = []
        self.step: subprocess.Popen[bytes] | None = None
        self.fit = not config.slurm.preflight  # the nodes have been examined, or need not be
        self.deadline = float("inf")  # Unix time
        self.started = False  # and has written so: a start counts, so that it cannot fail for ever
        self.addresses = dict[str, str]()  # of the nodes, in Slurm's order
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)
        if self.step is not None:
            self.step.send_signal(signal.SIGUSR1)

    def run(self) -> int:
        """The exit code of the job."""
        self._settle()
        named = client.patiently(lambda: client.node_addresses(self.job.nodelist), client.AWAY_SECONDS)
        self.addresses = launch.addresses(named, given_addresses(), self.job.node)
        while True:
            start = events.next_restart(events.history(self.run_dir))
            if (refusal := self._begin(start)) is not None:
                return refusal
            try:
                end = self._unfit(start) or self._ranks(start)
            except UserError as error:  # no port is free
                self._record("stop", start, error.what, MISTAKE, ends_chain=True)
                raise
            facts = self._facts(end)
            decision, end = policy.decide(end, facts), replace(end, suspects=policy.blamed(end, facts))
            self._record("stop", start, decision.reason, decision.code, end, decision.ends_chain)
            if decision.action != "again":
                return self._leave(end, decision)
            _say(f"start {start}: {decision.reason}; starting again in this allocation")
            time.sleep(policy.pause(facts.barren))

    def _settle(self) -> None:
        """The run folder tells of this job: its script and its output."""
        folder = self.run_dir / "slurm"
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / f"job_{self.job.id}.sbatch"
        if not kept.exists():
            shutil.copyfile(self.script, kept)
        output, wanted = Path(client.known(self.job.id).get("StdOut", "")), folder / f"job_{self.job.id}.out"
        if output.is_file() and not wanted.exists():
            with suppress(FileExistsError):
                wanted.symlink_to(output)

    def _begin(self, start: int) -> int | None:
        """Record the start; an exit code if there is to be none. Raises UserError if another job serves the run now."""
        before = events.history(self.run_dir)
        if lost := events.unfinished(before):
            self._check_ended(lost.job)
            events.record(self.run_dir, requeue.what_ended(before, lost, self._step()))
            before = events.history(self.run_dir)
        ended = events.last_of(before, "stop")
        if ended and ended.ends_chain and ended.chain == self.job.chain and ended.job != self.job.id:
            _say(f"nothing to do: job {ended.job} ended this chain: {ended.reason}")
            return DONE
        if refusal := policy.refuse(self._barren(), ended.reason if ended else ""):
            _say(refusal.reason)
            self._record("stop", start, refusal.reason, refusal.code, ends_chain=True)
            return refusal.code
        self._record("start", start)
        self.started = True
        nodes = ", ".join(f"{node} ({address})" for node, address in self.addresses.items())
        _say(f"start {start} of {self.run_dir}, job {self.job.id}, from step {self._step()}, on {nodes}; "
             f"output in {self._logs(start)}")  # fmt: skip
        return None

    def _check_ended(self, job: str) -> None:
        """Raises UserError if another job is running; nothing may be said of its end."""
        if job != self.job.id and client.known(job).get("JobState") == "RUNNING":
            raise UserError(
                f"run_dir = '{self.run_dir}' is in use by job {job}, which is running",
                rule="one job at a time writes to a run folder",
                fix=f"wait for its end or `dgpt stop {self.run_dir}`, or give this run another run_dir",
            )

    def _unfit(self, start: int) -> End | None:
        """Examine the nodes, once for each job; an end if nothing can be trained on them."""
        if self.fit or self.signals:
            return None
        command = preflight.command(self.job, len(self.addresses), sys.executable, self.arguments)
        settings = preflight.variables(self._variables(start), self.addresses)
        self.step = subprocess.Popen(command, env=with_variables(settings), stdin=subprocess.DEVNULL,
                                     stdout=subprocess.PIPE)  # fmt: skip
        try:
            said = self.step.communicate(timeout=preflight.STEP_SECONDS)[0]
        except subprocess.TimeoutExpired:
            self.step.kill()
            said = self.step.communicate()[0]
        self.step = None
        finding = preflight.read(said.decode(errors="replace"), self.addresses)
        for line in finding.lines:
            _say(line)
        self.fit = finding.end is None
        return finding.end

    def _variables(self, start: int) -> dict[str, str]:
        logs = self._logs(start).absolute()
        logs.mkdir(parents=True, exist_ok=True)
        port = launch.choose_port(int(self.job.id), start, launch.port_is_free)
        return launch.variables(self.job, list(self.addresses.values()), port, start, logs)

    def _ranks(self, start: int) -> End:
        """Run the ranks on all nodes to their end."""
        logs, settings = self._logs(start), self._variables(start)
        timeout = self.config.parallel.timeout_seconds
        command = launch.srun(self.job, len(self.addresses), timeout, self.arguments)
        code: int | None = FAILED
        if not self.signals:
            self.step = subprocess.Popen(command, env=with_variables(settings), stdin=subprocess.DEVNULL)
            if self.signals:  # one came while srun was started
                self.step.send_signal(signal.SIGUSR1)
            code = self._wait(self.step, start, logs)
            self.step = None
        return policy.end_of(_verdicts(logs), list(self.addresses), code)

    def _wait(self, step: "subprocess.Popen[bytes]", start: int, logs: Path) -> int | None:
        """Its exit code; None when the job is about to be killed with it, or when srun does not see that nodes failed.

        srun waits for ever for a node whose step daemon was killed, or that it cannot reach.
        """
        failed, told = float("inf"), False  # Unix time
        clock = Clock(self.run_dir, client.known(self.job.id))
        while time.time() < min(self.deadline, failed + GIVE_UP_SECONDS):
            with suppress(subprocess.TimeoutExpired):
                return step.wait(timeout=POLL_SECONDS)
            if not self.signals and clock.time_to_save():
                _say(f"asked to save {clock.lead:.0f} s before the end of the job: {clock.pace}")
                self._on_signal(signal.SIGUSR1, None)
            if self.signals and not told:
                told = True
                self.deadline = policy.deadline(client.known(self.job.id), time.time())
                with suppress(OSError):  # the save goes on
                    self._record("signal", start, self._why_stopped()[0])  # now: Slurm may kill this job before its end
            if any(verdict.exit_code not in (DONE, STOPPED) for verdict in _verdicts(logs).values()):
                failed = min(failed, time.time())
        step.kill()
        return None

    def _facts(self, end: End) -> Facts:
        failed = end.code == FAILED and not end.final and not end.unfit and not self.signals
        answer = failed and launch.nodes_answer(self.job, len(self.addresses), self._patience())
        stopped_by, cancelled = self._why_stopped()
        history = events.history(self.run_dir)
        successors = events.waiting(history, self.job.chain, self.job.id)
        elsewhere = answer and exclude.replaceable(history, end.suspects, self.config.slurm)
        return Facts(stopped_by, cancelled, self._barren(), answer, len(successors), elsewhere)

    def _patience(self) -> float:
        """Unix time up to which slurmctld may be away."""
        return min(self.deadline, time.time() + client.AWAY_SECONDS)

    def _why_stopped(self) -> tuple[str, bool]:
        name = signal.Signals(self.signals[0]).name if self.signals else ""
        return policy.why_slurm_stopped(name, client.known(self.job.id), self.job.restart)

    def _leave(self, end: End, decision: Decision) -> int:
        """End the job. What failed first comes last, where people look."""
        if end.text and (end.failed or not self.signals):  # after a signal from Slurm it is no failure to end early
            _say(f"what failed first:\n{end.text}")
        _say(decision.reason)
        if decision.action == "requeue":
            _say(requeue.go_on(self.job, self.run_dir, self.arguments[1:], self.config.slurm, self._patience()))
        elif decision.ends_chain:
            requeue.cancel_successors(self.job, self.run_dir)
        else:
            for said in requeue.warn_successors(self.job, self.run_dir, self.config.slurm):
                _say(said)
        return decision.code

    def lost_folder(self, error: OSError) -> int:
        """The exit code after the file server has failed this job, which is no reason to end the run."""
        _say(f"the run folder cannot be used: {error}")
        if not self.started and error.errno in LASTING:
            return FAILED
        with suppress(OSError):
            if self.started and (start := events.unfinished(events.history(self.run_dir))):
                self._record("stop", start.restart, f"the run folder could not be used: {error}", FAILED)
        _say(requeue.go_on(self.job, self.run_dir, self.arguments[1:], self.config.slurm, self._patience()))
        return FAILED

    def _record(
        self, kind: events.Kind, start: int, reason: str = "", code: int | None = None, end: End = NO_END,
        ends_chain: bool = False,
    ) -> None:  # fmt: skip
        event = Event(events.now(), kind, self.job.id, self.job.chain, start, tuple(self.addresses), self._step(),
                      reason, code, end.suspects, ends_chain, end.unfit)  # fmt: skip
        events.record(self.run_dir, event)

    def _barren(self) -> int:
        return events.barren(events.history(self.run_dir), self.job.chain, self._step())

    def _step(self) -> int:
        return requeue.newest_step(self.run_dir)

    def _logs(self, start: int) -> Path:
        return self.run_dir / "logs" / f"restart_{start}"


def main(script: str, verb: str, config: str, *overrides: str) -> int:
    """Raises UserError outside of a batch script, or for settings that cannot be used."""
    job = this_job()
    if job is None:
        raise UserError("this is no batch job of Slurm", rule="slurm/*.sbatch are for sbatch",
                        fix="submit it: sbatch --nodes 2 slurm/pretrain.sbatch run.toml")  # fmt: skip
    die_with_parent()
    batch = Batch(job, load(verb, config, overrides), Path(script), [verb, config, *overrides])
    try:
        return batch.run()
    except SlurmError as error:
        _say(f"Slurm does not answer this job: {error}")
        return FAILED
    except OSError as error:
        return batch.lost_folder(error)


def _verdicts(logs: Path) -> dict[str, Verdict]:
    """By node. A file server may refuse a file for a moment that an agent has just written anew."""
    found: dict[str, Verdict] = {}
    with suppress(OSError):
        for path in logs.glob("*.json"):
            with suppress(OSError):
                found[path.stem] = Verdict.read(path)
    return found


def _say(text: str) -> None:
    with suppress(OSError):
        print(f"{datetime.now():%Y-%m-%d %H:%M:%S} dgpt: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(guard(lambda: main(*sys.argv[1:])))
