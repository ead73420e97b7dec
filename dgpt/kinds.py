"""The verbs that a job can run, and how the settings of each are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from dgpt.config import FinetuneConfig, LoopConfig, load_config, load_settings


@dataclass(frozen=True)
class Kind:
    """A verb of `dgpt submit --verb`, with slurm/VERB.sbatch."""

    load: Callable[[str, Sequence[str]], LoopConfig] | None  # of its TOML file; None: it works on a model
    trains: bool  # resumes, has exit code 75, takes several nodes: dgpt.slurm.job takes care of it


KINDS: dict[str, Kind] = {
    "pretrain": Kind(load_config, trains=True),
    "finetune": Kind(partial(load_settings, FinetuneConfig), trains=True),
    "prepare": Kind(load_config, trains=False),
    "evaluate": Kind(None, trains=False),
}


def load(verb: str, path: str, overrides: Sequence[str]) -> LoopConfig:
    """Raises UserError."""
    reader = KINDS[verb].load
    assert reader, f"{verb} has no settings"
    return reader(path, overrides)
