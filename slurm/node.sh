#!/usr/bin/env bash
# One node of a job: srun starts it once on each, with the variables of dgpt/slurm/launch.py. It adds what differs between
# nodes and becomes launch/torchrun.sh, which becomes dgpt.agent: under proctrack/cgroup a signal to the step reaches only
# the process that srun started, and that one passes it on to the ranks.
set -euo pipefail

read -ra addresses <<<"$DGPT_NODE_ADDRESSES"
export NODE_RANK="$SLURM_NODEID" NODE_ADDR="${addresses[SLURM_NODEID]}"
export DGPT_VERDICT="$DGPT_LOGS/$SLURMD_NODENAME.json"
exec >>"$DGPT_LOGS/$SLURMD_NODENAME.log" 2>&1 </dev/null
exec bash "$DGPT_TORCHRUN" --tee 3 "$@"
