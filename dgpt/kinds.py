"""The verbs that a job can run, and how the settings of each are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dgpt.config import SlurmConfig, load_config


class Timed(Protocol):
    @property
    def timeout_seconds(self) -> int: ...


class Settings(Protocol):
    """What every run has, whatever its verb."""

    @property
    def run_dir(self) -> str: ...

    @property
    def parallel(self) -> Timed: ...

    def model_dump_json(self) -> str: ...


@dataclass(frozen=True)
class Kind:
    """A verb of `dgpt submit --verb`, with slurm/VERB.sbatch."""

    load: Callable[[str, Sequence[str]], Settings] | None  # of its TOML file; None: it works on a model
    trains: bool  # resumes, has exit code 75, takes several nodes: dgpt.slurm.job takes care of it


KINDS: dict[str, Kind] = {
    "pretrain": Kind(load_config, trains=True),
    "prepare": Kind(load_config, trains=False),
}


def load(verb: str, path: str, overrides: Sequence[str]) -> Settings:
    """Raises UserError."""
    reader = KINDS[verb].load
    assert reader, f"{verb} has no settings"
    return reader(path, overrides)


def slurm_of(settings: Settings) -> SlurmConfig:
    """Not every kind of run has this section."""
    found = getattr(settings, "slurm", None)
    return found if isinstance(found, SlurmConfig) else SlurmConfig()
