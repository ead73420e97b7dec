"""`python -m dgpt.doctor [VERB RUN.toml [overrides]]`: one node's part in the preflight of a job.

The first node prints the report as a line of JSON; another one that does not reach it says so, by way of srun, whose
network is Slurm's.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dgpt.doctor.case import Case, case_of
from dgpt.doctor.examine import examine
from dgpt.doctor.runtime import this_place
from dgpt.outcome import DONE, FAILED, guard


def main(arguments: Sequence[str]) -> int:
    place = this_place()
    case = case_of(arguments[0], arguments[1], arguments[2:]) if arguments else Case(Path.cwd())
    try:
        report = examine(place, case)
    except OSError as error:
        print(json.dumps({"unreached": place.node, "error": str(error)}), flush=True)
        return FAILED
    if report:
        print(json.dumps({"report": report.to_json()}), flush=True)
    return DONE


if __name__ == "__main__":
    sys.exit(guard(lambda: main(sys.argv[1:])))
