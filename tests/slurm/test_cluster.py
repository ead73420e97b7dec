"""The cluster that the scenarios stand on: it is real, its faults are real, and nothing of it stays behind."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cluster import HERE, Cluster, wait_for
from hosts import Hosts

SILENT = "import socket, sys; socket.create_connection((sys.argv[1], 6818), timeout=1).close()"
START = """
import sys; sys.path.insert(0, sys.argv[1])
import psutil, time
from pathlib import Path
from cluster import Cluster, wait_for
from hosts import Hosts
with dict(ports=Cluster, hosts=Hosts)[sys.argv[2]](Path(sys.argv[3])) as cluster:
    cluster.run("sbatch", "-N2", "--wrap", "setsid sleep 1000 & srun sh -c 'setsid env -i sleep 1000 & sleep 1000'")
    wait_for(lambda: sum(process.name() == "sleep" for process in cluster.processes()) == 5, "the job runs")
    print(*(process.pid for process in psutil.Process().children(recursive=True)), flush=True)
    time.sleep(1000)
"""

pytestmark = pytest.mark.slurm_full


def connects(cluster: Hosts, node: str, other: str) -> bool:
    return cluster.run(sys.executable, "-c", SILENT, other, node=node, check=False).returncode == 0


def test_four_nodes_run_a_step_each_and_have_gpus(any_cluster: Cluster) -> None:
    names = any_cluster.run(
        "srun", "-N4", "--gpus-per-node=2", "sh", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
    )
    assert sorted(names.stdout.split("\n")[:-1]) == [f"n{number} 0,1" for number in range(4)]


def test_a_batch_job_is_cancelled_with_all_its_processes(any_cluster: Cluster) -> None:
    job = any_cluster.run(
        "sbatch", "--parsable", "-N2", "--wrap", "srun sh -c 'setsid sleep 1000 & sleep 1000'"
    ).stdout.strip()
    wait_for(lambda: sum(process.name() == "sleep" for process in any_cluster.processes()) == 4, "the job runs")
    any_cluster.run("scancel", job)
    any_cluster.wait_for_nodes(*any_cluster.names)
    assert not any_cluster.processes()


@pytest.mark.parametrize("flavour", [Cluster, Hosts], ids=lambda flavour: flavour.flavour)
def test_nothing_is_left_when_the_tests_are_killed(
    flavour: type[Cluster], tmp_path_factory: pytest.TempPathFactory
) -> None:
    if reason := flavour.obstacle():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    command = [sys.executable, "-c", START, str(HERE), flavour.flavour, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(pids) > 20
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids), "every process ends", 10)
    assert not [group for group in Path("/sys/fs/cgroup").glob("freezer/dgpt-*") if str(process.pid) in group.name]


def test_nodes_are_hosts(cluster: Hosts) -> None:
    say = "echo $(hostname; hostname -I; ls /dev/shm; pgrep -c slurmd$); touch /dev/shm/x; sleep 0.5; rm /dev/shm/x"
    said = cluster.run("srun", "-N4", "sh", "-c", say).stdout
    assert sorted(said.splitlines()) == [f"n{number} 10.77.0.{10 + number} 1" for number in range(4)]


def test_a_signal_reaches_only_what_slurm_started(cluster: Hosts) -> None:
    """As on real clusters, by proctrack/cgroup: a signal to a step does not reach the workers of torchrun."""
    if cluster.proctrack != "cgroup":
        pytest.skip("no cgroup v1 freezer here: proctrack/linuxproc signals every descendant")
    child = "trap 'echo child' USR1; touch up; for i in 1 2 3 4 5; do sleep 0.2; done"
    script = f"trap 'echo parent' USR1; ({child}) & wait; wait"
    step = cluster.run("sbatch", "--parsable", "-o", "said", "--wrap", f'srun bash -c "{script}"').stdout.strip()
    wait_for((cluster.folder / "up").exists, "the step runs")
    cluster.run("scancel", "--signal=USR1", f"{step}.0")
    cluster.wait_for_nodes(*cluster.names)
    assert (cluster.folder / "said").read_text() == "parent\n"


def test_a_network_can_be_cut_and_healed(cluster: Hosts) -> None:
    assert connects(cluster, "n0", "n1")
    cluster.cut("n1")
    assert not connects(cluster, "n0", "n1")
    assert not connects(cluster, "ctl", "n1")
    cluster.heal("n1")
    assert connects(cluster, "n0", "n1")
    cluster.isolate("n0")
    cluster.isolate("n1")
    assert not connects(cluster, "n0", "n1")
    assert connects(cluster, "ctl", "n1")
    cluster.heal("n0")
    assert connects(cluster, "n0", "n1")


def test_a_node_that_lost_its_power_is_down_and_comes_back(cluster: Hosts) -> None:
    job = cluster.run("sbatch", "--parsable", "-w", "n1", "--no-requeue", "--wrap", "sleep 1000").stdout.strip()
    wait_for(lambda: cluster.processes("n1"), "the job runs")
    cluster.crash("n1")
    cluster.wait_for_nodes("n1", state="down*", seconds=60)
    assert "JobState=NODE_FAIL" in cluster.run("scontrol", "show", "job", job).stdout
    cluster.boot("n1")
    cluster.wait_for_nodes("n1", seconds=60)


def test_daemons_can_end_and_start_under_a_job(cluster: Hosts) -> None:
    job = cluster.run("sbatch", "--parsable", "-w", "n1", "--wrap", "sleep 3").stdout.strip()
    wait_for(lambda: cluster.processes("n1"), "the job runs")
    cluster.restart_slurmctld()
    cluster.kill("slurmd", "n1")
    cluster.start_slurmd("n1")
    wait_for(lambda: "JobState=COMPLETED" in cluster.run("scontrol", "show", "job", job).stdout, "the job is done")


def test_a_frozen_job_makes_no_step_and_its_node_looks_healthy(cluster: Hosts) -> None:
    loop = "while sleep 0.05; do date +%N > now; done"
    job = cluster.run("sbatch", "--parsable", "-w", "n1", "--wrap", loop).stdout.strip()
    now = cluster.folder / "now"
    wait_for(now.exists, "the job runs")
    cluster.freeze("n1")
    before = now.read_text()
    time.sleep(0.5)
    assert (now.read_text(), cluster.states()["n1"]) == (before, "mixed")
    cluster.thaw("n1")
    wait_for(lambda: now.read_text() != before, "the job goes on")
    cluster.run("scancel", job)
