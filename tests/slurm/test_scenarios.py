"""What happens to jobs, and how the runs end that they serve: each as the run that nothing happened to. In `make test`.

Every step is there once with the same loss; weights and optimizer state are equal bit for bit. The `cluster` fixture
checks after each test that no process, port, shared memory or drained node is left.
"""

import sys
import time
from pathlib import Path

from cluster import wait_for
from hosts import Hosts
from jobs import ROOT, STEPS, Figure, Job, assert_same_run, difference, losses, recover, submit

from dgpt.checkpoint import list_checkpoints

CRASH = """
import os, signal, threading, time

def crash():
    while "RANK" not in os.environ:
        time.sleep(0.01)
    if %s:
        os.kill(os.getpid(), signal.SIGKILL)

os.register_at_fork(after_in_child=lambda: threading.Thread(target=crash, daemon=True).start())
"""


def test_two_nodes_train_to_the_end(undisturbed: Job) -> None:
    curve = losses(undisturbed.run_dir)
    assert list(curve) == [*range(1, STEPS + 1)]
    assert curve[STEPS] < 0.8 * curve[1]
    assert "4 ranks = dp 4 x tp 1" in undisturbed.text()
    assert undisturbed.starts() == [["n0", "n1"]]


def test_the_signal_before_the_time_limit_saves_requeues_and_loses_no_step(
    cluster: Hosts, runs: Path, undisturbed: Job, figure: Figure
) -> None:
    job = submit(cluster, runs, "limit")
    job.wait_for_step(10)
    fault = time.monotonic()
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    wait_for(job.stopped_at, "the ranks save and end")
    recover(job, fault, figure, "signal, save and requeue")
    assert job.record()["Restarts"] == "1"
    assert f"resuming at step {job.stopped_at()} " in job.text()
    assert_same_run(job.run_dir, undisturbed.run_dir)


def test_a_cancelled_run_is_saved_and_goes_on_with_half_the_nodes(cluster: Hosts, runs: Path, undisturbed: Job) -> None:
    job = submit(cluster, runs, "cancelled")
    job.wait_for_step(10)
    cluster.run("scancel", job.number)
    assert job.end() == "CANCELLED"
    assert list_checkpoints(job.run_dir)[-1].step == job.stopped_at() == max(losses(job.run_dir)) < STEPS
    half = submit(cluster, runs, "cancelled", nodes=1)
    assert half.end() == "COMPLETED", half.tail()
    assert f"resuming at step {job.stopped_at()} " in half.text()
    assert list(losses(job.run_dir)) == [*range(1, STEPS + 1)]
    compared = difference(job.run_dir, undisturbed.run_dir)
    weights = next(distance for state, _, distance in compared.states() if state == "weight")
    assert not compared.unmatched
    assert weights.relative < 1e-4  # sums over two ranks and over four are rounded differently


def test_a_killed_rank_is_started_again(cluster: Hosts, runs: Path, undisturbed: Job, figure: Figure) -> None:
    job = submit(cluster, runs, "rank")
    job.wait_for_step(25)
    fault = time.monotonic()
    job.ranks()[3].kill()
    recover(job, fault, figure, "dead rank, restarted in the allocation")
    assert job.record()["Restarts"] == "0"
    assert "rank 3 on n1 " in job.text()
    assert_same_run(job.run_dir, undisturbed.run_dir)


def test_a_killed_agent_takes_its_ranks_with_it_and_the_run_goes_on(
    cluster: Hosts, runs: Path, undisturbed: Job, figure: Figure
) -> None:
    job = submit(cluster, runs, "agent")
    job.wait_for_step(25)
    fault = time.monotonic()
    job.agents()["n1"].kill()
    recover(job, fault, figure, "dead agent")
    assert_same_run(job.run_dir, undisturbed.run_dir)


def test_a_run_goes_on_elsewhere_when_its_first_node_loses_power(
    cluster: Hosts, runs: Path, undisturbed: Job, figure: Figure
) -> None:
    job = submit(cluster, runs, "power")
    job.wait_for_step(25)
    fault = time.monotonic()
    cluster.crash("n0")
    recover(job, fault, figure, "power loss, requeued on other nodes")
    assert [("n0" in nodes, len(nodes)) for nodes in job.starts()] == [(True, 2), (False, 2)]
    assert_same_run(job.run_dir, undisturbed.run_dir)
    cluster.boot("n0")


def test_jobs_on_the_same_nodes_do_not_meet_and_a_run_folder_has_one_job(
    cluster: Hosts, runs: Path, undisturbed: Job
) -> None:
    together = ("--nodelist=n0,n1",)
    long = submit(cluster, runs, "shared", "training.steps=1000000", processes=1, options=together)
    long.wait_for_step(1)
    second = submit(cluster, runs, "shared", "training.steps=1000000", processes=1, options=together)
    other = submit(cluster, runs, "other", options=together)
    assert second.end() == "FAILED"
    assert second.record()["ExitCode"] == "2:0"
    assert f"is in use by job {long.number}, which is running" in second.text()
    assert [event["event"] for event in long.events()].count("stop") == 0
    assert other.end() == "COMPLETED", other.tail()
    assert_same_run(other.run_dir, undisturbed.run_dir)
    assert long.state() == "RUNNING"
    (long.run_dir / "stop").touch()
    assert long.end() == "FAILED"
    assert long.record()["ExitCode"] == "75:0"
    assert list_checkpoints(long.run_dir)[-1].step == long.stopped_at() == max(losses(long.run_dir))


def test_a_run_that_makes_no_progress_ends(cluster: Hosts, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CRASH % "os.environ['RANK'] == '1'")
    job = submit(cluster, runs, "loop", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert job.end() == "FAILED"
    assert "rank 1 on n0 " in job.text()
    assert len(job.starts()) == 3
    assert not list_checkpoints(job.run_dir)


def test_a_node_that_fails_twice_is_left_out_and_the_run_ends_without_it(
    cluster: Hosts, runs: Path, undisturbed: Job, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CRASH % "os.environ['SLURMD_NODENAME'] == 'n1'")
    job = submit(cluster, runs, "bad", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert job.end() == "COMPLETED", job.tail()
    assert job.starts()[:2] == [["n0", "n1"], ["n0", "n1"]]
    assert ["n1" in nodes for nodes in job.starts()] == [True, True, False]
    assert "left out: n1 until " in job.text()
    assert job.record()["ExcNodeList"] == "n1"
    said = cluster.run(sys.executable, "-m", "dgpt.cli", "status", str(job.run_dir)).stdout
    assert "left out  n1 until " in said
    assert_same_run(job.run_dir, undisturbed.run_dir)


def test_the_preflight_finds_a_node_that_does_not_share_the_run_folder(
    cluster: Hosts, runs: Path, figure: Figure
) -> None:
    run_dir = runs / "unshared"
    run_dir.mkdir()
    cluster.run("mount", "-t", "tmpfs", "none", str(run_dir), node="n1")
    job = submit(cluster, runs, "unshared", "training.steps=20", "training.global_batch_size=6", "slurm.preflight=true",
                 nodes=3, processes=1)  # fmt: skip
    assert job.end() == "COMPLETED", job.tail()
    assert ["n1" in nodes for nodes in job.starts()] == [True, False]
    (stop, _) = (event for event in job.events() if event["event"] == "stop")
    assert (stop["suspects"], stop["unfit"]) == (["n1"], True)
    assert "is not shared: what n0 wrote cannot be read on n1" in job.text()
    figure("preflight of 3 nodes", job.preflight_seconds())
    cluster.run("umount", str(run_dir), node="n1")
