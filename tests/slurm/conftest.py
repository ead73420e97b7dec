"""A cluster for each test, with the check that the test left nothing in it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # so that the tests can import the cluster by name

from cluster import Cluster, wait_for
from hosts import Hosts
from jobs import RUN, Figure, Job, submit


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Print a measurement at the end of the session (tests/conftest.py): what, and seconds."""
    return lambda what, seconds: record_property("figure", f"tests/slurm: {what}: {seconds:.1f} s")


def require(flavour: type[Cluster]) -> None:
    if reason := flavour.obstacle():
        pytest.skip(f"no Slurm cluster of the flavour {flavour.flavour}: {reason}")


@pytest.fixture(params=[Cluster, Hosts], ids=lambda flavour: flavour.flavour)
def any_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four idle nodes, once as ports and once as hosts."""
    require(request.param)
    with request.param(tmp_path_factory.mktemp("slurm"), gpus=2) as cluster:
        yield cluster


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Four idle nodes that are hosts, which a test that passes has to leave idle, and with nothing on them."""
    require(Hosts)
    failed = request.session.testsfailed
    with Hosts(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
        if request.session.testsfailed == failed:
            check_nothing_is_left(cluster)


def check_nothing_is_left(cluster: Hosts) -> None:
    """Of its jobs: no process, no port, no shared memory, no node that is drained or cannot be used again."""
    cluster.wait_for_nodes(*cluster.names, seconds=120)  # a node whose network is back waits for a ping
    wait_for(lambda: not cluster.processes(), "no process of a job is left", 10, cluster.processes)
    for name in cluster.names:
        assert (name, cluster.listening(name), cluster.shared_memory(name)) == (name, set(), [])


@pytest.fixture(scope="session")
def runs(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared folder of a user: run.toml, and the run folders to come."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run.toml").write_text(RUN % tiny_data)
    return folder


@pytest.fixture(scope="session")
def undisturbed(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run of 2 nodes x 2 ranks that nothing happened to."""
    require(Hosts)
    with Hosts(tmp_path_factory.mktemp("slurm")) as cluster:
        job = submit(cluster, runs, "undisturbed")
        assert job.end() == "COMPLETED", job.tail()
        check_nothing_is_left(cluster)
    return job
