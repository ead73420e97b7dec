"""A batch script on its own, with commands of Slurm that do as a test says; the fixture `batch` starts it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from dgpt.slurm.events import history

Batch = Callable[..., "subprocess.Popen[str]"]
RECORD = "JobId=12 JobState=RUNNING Reason=None Restarts=0 PreemptTime=None EndTime=Unknown StdOut=/none"
SCONTROL = f"""case "$1 $2" in
  "show hostnames") echo n0; echo n1 ;;
  "show node") echo "NodeName=n0 NodeAddr=127.0.0.1"; echo "NodeName=n1 NodeAddr=127.0.0.1" ;;
  "show job") echo "{RECORD}" ;;
esac"""
# Answers a sign of life; else plays the next line of the plan: a checkpoint's step, exit code and words of all nodes.
SRUN = """[[ ${@: -1} == true ]] && exit 0
trap 'code=75' USR1
read -r step code wait text < <(sed -n "$(($(cat plan.n 2>/dev/null || echo 0) + 1))p" plan)
echo $(($(cat plan.n 2>/dev/null || echo 0) + 1)) >plan.n
echo "$MASTER_ADDR:$MASTER_PORT $RDZV_ID" >>met
for i in $(seq $((wait * 10))); do sleep 0.1; [[ $code == 75 ]] && break; done
mkdir -p run/checkpoints/step_$(printf %08d $step) && touch run/checkpoints/step_$(printf %08d $step)/manifest.json
for node in n0 n1; do
  words='"node": "'$node'", "exit_code": '$code', "text": "'$text'", "time": 1.0, "final": false'
  echo "{$words}" >$DGPT_LOGS/$node.json
done
[[ $code == 75 ]] && exit 0
exit $code
"""
# As `python -m dgpt.slurm.job`, but that it does not wait so long.
MAIN = """import sys
from dgpt.outcome import guard
from dgpt.slurm import client, job, policy
client.RETRY_SECONDS = policy.PAUSE_SECONDS = 0.1
sys.exit(guard(lambda: job.main(*sys.argv[1:])))
"""


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    out = process.communicate(timeout=60)[0]
    return process.returncode, out


def told() -> list[tuple[str, int, int, int | None]]:
    return [(event.event, event.restart, event.step, event.code) for event in history(Path("run"))]
