"""What of a run matters to the examination of its nodes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dgpt.config import to_toml
from dgpt.errors import UserError
from dgpt.kinds import load


@dataclass(frozen=True)
class Case:
    folder: Path  # that all nodes share
    config: str = ""  # hash of the resolved settings; empty without a run


def case_of(verb: str, config: str, overrides: Sequence[str]) -> Case:
    """Settings that cannot be read on this node show as other ones than those of the others."""
    try:
        settings = load(verb, config, overrides)
    except UserError as error:
        return Case(Path(), f"unreadable: {error.what}")
    digest = hashlib.sha256(to_toml(settings).encode()).hexdigest()
    return Case(Path(settings.run_dir), digest[:16])
