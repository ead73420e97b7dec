"""The scenarios of `make test-slurm`: rarer faults; a run still ends as the one that nothing happened to."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGSTOP

import pytest
from cluster import wait_for
from hosts import Hosts
from jobs import STEPS, Figure, Job, assert_same_run, recover, submit

from dgpt.slurm.launch import choose_port

pytestmark = pytest.mark.slurm_full

LISTEN = """
import socket, sys, time
with socket.create_server(("", int(sys.argv[1]))):
    time.sleep(1000)
"""


def kill_rank_0(job: Job) -> None:
    job.ranks()[0].kill()


def kill_step_daemon(job: Job) -> None:
    for process in job.cluster.processes("n1"):
        if process.name() == "slurmstepd":
            process.kill()


def lose_power(job: Job) -> None:
    job.cluster.crash("n1")


def cut(job: Job) -> None:
    job.cluster.cut("n1")


MENDED: dict[Callable[[Job], None], Callable[[Hosts], None]] = {
    lose_power: lambda cluster: cluster.boot("n1"),
    cut: lambda cluster: cluster.heal("n1"),
}


@pytest.mark.parametrize("fault", [kill_rank_0, kill_step_daemon, lose_power, cut])
def test_a_run_goes_on_after_a_fault(
    cluster: Hosts, runs: Path, undisturbed: Job, figure: Figure, fault: Callable[[Job], None]
) -> None:
    job = submit(cluster, runs, fault.__name__, "parallel.timeout_seconds=60", "parallel.hang_seconds=45")
    job.wait_for_step(25)
    begin = time.monotonic()
    fault(job)
    recover(job, begin, figure, fault.__name__.replace("_", " "))
    assert_same_run(job.run_dir, undisturbed.run_dir)
    MENDED.get(fault, lambda cluster: None)(cluster)


def test_a_hung_rank_is_named_within_ten_seconds_and_the_run_goes_on(
    cluster: Hosts, runs: Path, undisturbed: Job, figure: Figure
) -> None:
    job = submit(cluster, runs, "hang", "parallel.hang_seconds=5")
    job.wait_for_step(25)
    begin = time.monotonic()
    rank = job.ranks()[3]
    rank.send_signal(SIGSTOP)
    wait_for(lambda: "dgpt: hang: " in job.text(), "the hang is found", 60, job.tail)
    found = time.monotonic() - begin
    figure("a hung rank is named", found)
    recover(job, begin, figure, "a hung rank")
    assert found < 10
    stop = next(event for event in job.events() if event["event"] == "stop")
    assert re.match(r"hang: rank 3 on n1 \(process \d+\) has stood in '\w+' of step \d+ for [567] s: its process is "
                    r"stopped \(SIGSTOP\); 3 ranks wait for it", stop["reason"])  # fmt: skip
    assert stop["suspects"] == ["n1"]
    assert all(f"[rank {number}] " in job.text() for number in range(3)), "the stacks of those that can answer"
    assert_same_run(job.run_dir, undisturbed.run_dir)


def restart_slurmctld(job: Job) -> None:
    job.cluster.restart_slurmctld()


def restart_slurmd(job: Job) -> None:
    job.cluster.kill("slurmd", "n0")
    job.cluster.start_slurmd("n0")


def stall(job: Job) -> None:
    job.cluster.freeze("n1")
    time.sleep(3)
    job.cluster.thaw("n1")


def short_cut(job: Job) -> None:
    """TCP tries again after 0.2, 0.6, 1.4, 3.0 and 6.2 seconds, and the ranks count as hung after 5."""
    job.cluster.cut("n1")
    time.sleep(2)
    job.cluster.heal("n1")


@pytest.mark.parametrize("trouble", [restart_slurmctld, restart_slurmd, stall, short_cut])
def test_a_run_notices_nothing_of(cluster: Hosts, runs: Path, undisturbed: Job, trouble: Callable[[Job], None]) -> None:
    job = submit(cluster, runs, trouble.__name__, "parallel.hang_seconds=5")
    job.wait_for_step(10)
    trouble(job)
    assert job.end() == "COMPLETED", job.tail()
    assert len(job.starts()) == 1
    assert_same_run(job.run_dir, undisturbed.run_dir)


def test_the_signal_that_slurm_itself_sends_before_the_time_limit_saves_and_requeues(
    cluster: Hosts, runs: Path, undisturbed: Job
) -> None:
    """30 to 60 s after the start; the run would be done before, so that a rank stands still until it comes."""
    limit = ("--time=2", "--signal=B:USR1@90")
    job = submit(cluster, runs, "own_signal", "parallel.hang_seconds=0", options=limit)
    job.wait_for_step(10)
    rank = job.ranks()[3]
    rank.suspend()
    wait_for(lambda: job.events()[-1]["event"] == "signal", "Slurm sends the signal", 90, job.tail)
    assert job.events()[-1]["reason"] == "the time limit comes (SIGUSR1)"
    rank.resume()
    assert job.end() == "COMPLETED", job.tail()
    assert job.record()["Restarts"] == "1"
    assert "asked to save" not in job.text(), "the batch script did not need to"
    assert f"resuming at step {job.stopped_at()} " in job.text()
    assert_same_run(job.run_dir, undisturbed.run_dir)


def test_a_preempted_run_is_saved_and_goes_on_later(cluster: Hosts, runs: Path, undisturbed: Job) -> None:
    job = submit(cluster, runs, "preempted")
    job.wait_for_step(10)
    cluster.run("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--wrap", "sleep 2")
    assert job.end() == "COMPLETED", job.tail()
    assert job.record()["Restarts"] == "1"
    assert f"resuming at step {job.stopped_at()} " in job.text()
    assert_same_run(job.run_dir, undisturbed.run_dir)


def test_more_signals_during_the_save_change_nothing(cluster: Hosts, runs: Path, undisturbed: Job) -> None:
    job = submit(cluster, runs, "signals")
    job.wait_for_step(10)
    for name in ("USR1", "USR1", "TERM", "USR1"):
        cluster.run("scancel", "--batch", f"--signal={name}", job.number, check=False)
    assert job.end() == "COMPLETED", job.tail()
    assert job.record()["Restarts"] == "1"
    assert f"resuming at step {job.stopped_at()} " in job.text()
    assert_same_run(job.run_dir, undisturbed.run_dir)


def test_a_requeued_run_takes_other_nodes_when_one_of_its_own_is_drained(
    cluster: Hosts, runs: Path, undisturbed: Job
) -> None:
    job = submit(cluster, runs, "drained")
    job.wait_for_step(10)
    cluster.run("scontrol", "update", "NodeName=n0", "State=DRAIN", "Reason=test")
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    assert job.end() == "COMPLETED", job.tail()
    assert job.starts() == [["n0", "n1"], ["n1", "n2"]]  # n1 has other ranks now
    assert_same_run(job.run_dir, undisturbed.run_dir)
    cluster.run("scontrol", "update", "NodeName=n0", "State=RESUME")


def test_node_names_may_mean_the_loopback(cluster: Hosts, runs: Path, undisturbed: Job) -> None:
    """As Debian writes it into /etc/hosts."""
    hosts = cluster.folder / "etc" / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"127.0.1.1 {name}\n" for name in cluster.names))
    job = submit(cluster, runs, "loopback")
    assert job.end() == "COMPLETED", job.tail()
    assert_same_run(job.run_dir, undisturbed.run_dir)


def test_a_port_that_a_stranger_holds_is_passed_over(cluster: Hosts, runs: Path, undisturbed: Job) -> None:
    first = int(cluster.run("sbatch", "--parsable", "--hold", "--wrap", "true").stdout)
    port = choose_port(first + 2, 0, lambda port: True)
    command = f"{sys.executable} -c '{LISTEN}' {port}"
    stranger = cluster.run("sbatch", "--parsable", "--nodelist=n0", "--wrap", command).stdout.strip()
    wait_for(lambda: port in cluster.listening("n0"), f"a stranger holds port {port}")
    job = submit(cluster, runs, "port", options=("--nodelist=n0,n1",))
    assert int(job.number) == first + 2
    assert job.end() == "COMPLETED", job.tail()
    assert_same_run(job.run_dir, undisturbed.run_dir)
    cluster.run("scancel", stranger, str(first))


def test_nodes_that_cannot_reach_each_other_do_not_hang_for_ever(
    cluster: Hosts, runs: Path, undisturbed: Job, figure: Figure
) -> None:
    """Both still reach slurmctld, to which all looks well; srun hears nothing of the end of the other node's task.

    Slurm's own SIGTERM to the lost node arrives when TCP tries again, a minute after the fault, for a step that has the
    name of the next start's. In life that waits two minutes, here two seconds: so the test waits.
    """
    job = submit(cluster, runs, "isolated", "parallel.timeout_seconds=15", "parallel.hang_seconds=0")
    job.wait_for_step(25)
    begin = time.monotonic()
    cluster.isolate("n0")
    cluster.isolate("n1")
    wait_for(lambda: job.events()[-1]["event"] == "stop", "the job sees it", 150, job.tail)
    cluster.heal("n0")
    cluster.heal("n1")
    time.sleep(30)
    recover(job, begin, figure, "two nodes that do not reach each other, 30 s of waiting among it")
    assert_same_run(job.run_dir, undisturbed.run_dir)


def test_the_doctor_examines_an_allocation(cluster: Hosts, runs: Path) -> None:
    """In the shell of salloc it runs a step on all nodes; one that does not see the folder is named."""
    doctor = (sys.executable, "-m", "dgpt.cli", "doctor", "run.toml", f"run_dir={runs}/doctor")
    said = cluster.run("salloc", "--nodes=3", "--ntasks-per-node=1", *doctor, cwd=runs, COLUMNS="200", timeout=240)
    assert "3 nodes examined in" in said.stdout
    assert "fit to train" in said.stdout
    cluster.run("mount", "-t", "tmpfs", "none", str(runs / "doctor"), node="n2")
    said = cluster.run("salloc", "--nodes=3", *doctor, cwd=runs, COLUMNS="200", timeout=240, check=False)
    assert said.returncode == 1
    assert "cannot be read on n2" in said.stdout
    assert "nothing can be trained" in said.stdout
    cluster.run("umount", str(runs / "doctor"), node="n2")


def test_jobs_of_a_chain_pass_the_run_on_where_requeue_is_refused(cluster: Hosts, runs: Path, undisturbed: Job) -> None:
    """--no-requeue: another job of the same shape follows the one that was asked to save."""
    job = submit(cluster, runs, "chained", options=("--no-requeue",))
    job.wait_for_step(10)
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    assert job.end() == "FAILED"
    assert job.record()["ExitCode"] == "75:0"
    found = re.search(r"job (\d+) follows", job.text())
    assert found, job.tail()
    follower = Job(cluster, found[1], job.run_dir)
    assert follower.end() == "COMPLETED", follower.tail()
    assert follower.record()["NumNodes"] == "2"
    assert_same_run(job.run_dir, undisturbed.run_dir)


def test_a_run_from_submit_to_its_end_by_dgpts_own_commands(cluster: Hosts, runs: Path, undisturbed: Job) -> None:
    """With the preflight; the second job of the chain has nothing to do when the first has finished."""
    run_dir = runs / "submitted"

    def dgpt(*words: str) -> str:
        return cluster.run(sys.executable, "-m", "dgpt.cli", *words, cwd=runs, timeout=240, OMP_NUM_THREADS="1").stdout

    given = (
        "run.toml",
        f"run_dir={run_dir}",
        "slurm.preflight=true",
        "--nodes",
        "2",
        "--nproc",
        "2",
        "--time",
        "30:00",
    )
    said = dgpt("submit", *given, "--chain", "2", "--exclude", "n0")
    assert "batch: 8 sequences = dp 4 x 2 x 1 micro steps" in said
    assert "a step takes 30 s (not measured yet)" in said
    first, second = re.findall(r"submitted job (\d+), (\d+)", said)[0]
    job = Job(cluster, first, run_dir)
    assert job.end() == "COMPLETED", job.tail()
    assert job.starts() == [["n1", "n2"]]
    assert "preflight: 2 nodes, 2 ranks, " in job.text()
    assert Job(cluster, second, run_dir).end() == "CANCELLED"
    assert_same_run(run_dir, undisturbed.run_dir)
    assert f"finished: step {STEPS}" in dgpt("status", str(run_dir))
    assert "n1: [rank " in dgpt("logs", str(run_dir), "--rank", "0")
    said = dgpt("submit", *given, "training.steps=120")
    assert re.search(r"a save \S+ s \(measured at step_\d{8}\)", said), said  # the slowest of three
    cluster.run("scancel", "--user=root")
    wait_for(lambda: not cluster.run("squeue", "-h").stdout, "the queue is empty")
