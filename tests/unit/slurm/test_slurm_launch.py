"""How the ranks of a job are started, from what Slurm says."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from dgpt.errors import UserError
from dgpt.scripts import script
from dgpt.slurm import launch, preflight
from dgpt.slurm.runtime import Job, this_job

JOB = Job("1234", "1234", 1, "n[0-1]", "n0", 16, 8, 8, "")


def test_the_port_follows_from_the_job_and_passes_over_one_that_is_held() -> None:
    first = launch.choose_port(1234, 0, lambda port: True)
    assert first in launch.PORTS
    assert 29500 not in launch.PORTS
    assert max(launch.PORTS) < 32768
    assert launch.choose_port(1234, 0, lambda port: port != first) == first + 1
    assert launch.choose_port(1235, 0, lambda port: True) != first
    with pytest.raises(UserError, match="no port from 20000"):
        launch.choose_port(1234, 0, lambda port: False)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_anybody_listens_on_is_not_free(address: str) -> None:
    with socket.socket() as stranger:
        stranger.bind((address, 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        assert not launch.port_is_free(port)
    assert launch.port_is_free(port)


def test_a_name_that_means_the_loopback_on_its_own_node_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"node0": "127.0.1.1", "node1": "10.0.0.2"}
    monkeypatch.setattr(launch, "resolve", lambda node, address: names[address])
    monkeypatch.setattr(launch, "seen_from", lambda address: "10.0.0.1")
    assert launch.reachable({"n0": "node0", "n1": "node1"}, "n0") == {"n0": "10.0.0.1", "n1": "10.0.0.2"}


def test_a_loopback_among_several_nodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"node0": "127.0.1.1", "node1": "10.0.0.2"}
    monkeypatch.setattr(launch, "resolve", lambda node, address: names[address])
    monkeypatch.setattr(launch, "seen_from", lambda address: None)
    with pytest.raises(UserError, match=r"the address of node n0 is 127\.0\.1\.1, its loopback"):
        launch.reachable({"n0": "node0", "n1": "node1"}, "n0")


def test_a_cluster_on_one_machine_may_use_the_loopback() -> None:
    addresses = {"n0": "127.0.0.1", "n1": "127.0.0.1"}
    assert launch.reachable(addresses, "n0") == addresses


def test_a_name_that_does_not_resolve_is_named() -> None:
    with pytest.raises(UserError, match=r"'no-such\.invalid' of node n1 cannot be resolved"):
        launch.resolve("n1", "no-such.invalid")


def test_variables_of_the_nodes() -> None:
    settings = launch.variables(JOB, ["10.0.0.1", "10.0.0.2"], 20007, 3, Path("/run/logs/restart_3"))
    assert settings["MASTER_ADDR"] == "10.0.0.1"
    assert settings["NNODES"] == "2"
    assert settings["RDZV_ID"] == "dgpt-1234-1-3"
    assert (settings["NPROC_PER_NODE"], settings["OMP_NUM_THREADS"]) == ("8", "2")


def test_srun_starts_one_task_a_node_and_never_waits_for_ever() -> None:
    command = launch.srun(JOB, 2, 600, ["pretrain", "run.toml"])
    assert command[0] == "srun"
    assert {"--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=16", "--kill-on-bad-exit=1", "--wait=660",
            "--input=none"} <= set(command)  # fmt: skip
    assert command[-4:] == ["-m", "dgpt.cli", "pretrain", "run.toml"]


def test_a_step_gets_its_variables_though_the_job_was_submitted_without_any() -> None:
    """--export=NONE, or SBATCH_EXPORT, for sbatch is one for srun, too."""
    for command in (launch.srun(JOB, 2, 600, ["pretrain"]), launch.probe(2), preflight.command(JOB, 2, "python", [])):
        assert "--export=ALL" in command
    for verb in ("prepare", "evaluate"):
        assert "srun --ntasks=1 --export=ALL " in script(f"slurm/{verb}.sbatch").read_text()


def test_containers() -> None:
    assert launch.in_container("a.sif", ["bash"]) == ["apptainer", "exec", "--nv", "a.sif", "bash"]
    assert launch.in_container("nvcr.io#a", ["bash"])[0] == "--container-image=nvcr.io#a"
    assert launch.in_container("", ["bash"]) == ["bash"]


def test_what_slurm_says_to_a_batch_script(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "DGPT_CHAIN"):
        monkeypatch.delenv(name, raising=False)
    assert this_job() is None
    said = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NODELIST": "n[0-1]", "SLURMD_NODENAME": "n0", "SLURM_RESTART_COUNT": "1",
            "SLURM_CPUS_PER_TASK": "16", "SLURM_GPUS_ON_NODE": "8"}  # fmt: skip
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert this_job() == JOB
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1230")
    assert this_job() == replace(JOB, chain="1230"), "the jobs of an array follow one another"
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    monkeypatch.setenv("DGPT_CHAIN", "chain-1")
    job = this_job()
    assert job is not None
    assert (job.processes_per_node, job.chain) == (2, "chain-1")
