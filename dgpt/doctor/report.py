"""What an examination found, on its way from the first node to who asked; without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dgpt.doctor.reading import Reading
from dgpt.doctor.rules import Problem


@dataclass(frozen=True)
class Report:
    readings: tuple[Reading, ...]
    problems: tuple[Problem, ...]
    world: int  # ranks of the all-reduce
    seconds: float  # of the examination
    reduce_seconds: float  # of an all-reduce of 1 MiB, on the slowest rank; 0 if it failed

    @property
    def fatal(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.fatal)

    @property
    def suspects(self) -> tuple[str, ...]:
        """Nodes on which nothing can be trained."""
        return tuple(dict.fromkeys(node for problem in self.fatal for node in problem.suspects))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Report":
        problems = (Problem(**{**problem, "suspects": tuple(problem["suspects"])}) for problem in values["problems"])
        readings = tuple(map(Reading.of, values["readings"]))
        return cls(**{**values, "readings": readings, "problems": tuple(problems)})


def line(problem: Problem) -> str:
    """For the output of a job."""
    return f"preflight: {'' if problem.fatal else 'warning: '}{problem.what}; {problem.fix}"
