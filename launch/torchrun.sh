#!/usr/bin/env bash
# Start the processes of one node under torchrun; run it once on every node. The only torchrun line of dgpt.
#
#   launch/torchrun.sh -m dgpt.cli pretrain run.toml            one node: a process per GPU, or one without GPUs
#   NPROC_PER_NODE=2 launch/torchrun.sh -m dgpt.cli ...         one node, two processes
#   NNODES=4 NODE_RANK=0 MASTER_ADDR=node0 launch/torchrun.sh   on each of four nodes, NODE_RANK from 0 to 3
#
# Reads NPROC_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, NODE_ADDR, RDZV_ID, MAX_RESTARTS, OMP_NUM_THREADS,
# PYTHON and TMPDIR; docs/launch.md says what they mean and why the options below are as they are.
# Exit code: 0 finished, 75 stopped after a save (start it again), 2 a mistake of the user, anything else a failure.
set -euo pipefail

python="${PYTHON:-python3}"
nnodes="${NNODES:-1}"
restarts="${MAX_RESTARTS:-0}"
processes="${NPROC_PER_NODE:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}"

# Share the cores out: torchrun would give each process one, torch alone would give each process all.
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}"

if ((nnodes == 1)); then
  # Loopback, and a port that the kernel picks when the store binds it: two runs on one machine cannot meet.
  rendezvous=(--rdzv-endpoint 127.0.0.1:0 --rdzv-conf is_host=1 --rdzv-id "dgpt-$$" --local-addr 127.0.0.1)
  if [[ $(uname) == Linux ]]; then export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-lo}"; fi
else
  # Say who hosts the store: torchrun guesses by host name, and wrongly where names are shared or have aliases.
  : "${NODE_RANK:?NNODES > 1 needs NODE_RANK, from 0 to NNODES - 1}" "${MASTER_ADDR:?NNODES > 1 needs MASTER_ADDR, node 0}"
  rendezvous=(--rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29400}" --rdzv-id "${RDZV_ID:-dgpt}"
    --rdzv-conf "is_host=$((NODE_RANK == 0))" ${NODE_ADDR:+--local-addr "$NODE_ADDR"})
fi
# Restarted workers would meet the addresses of the dead ones in the store that torchrun shares with them by default.
if ((restarts > 0)); then export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1; fi

# dgpt.agent is torchrun's main with exit codes, and passes SIGTERM, SIGINT and SIGUSR1 on itself; torchrun would give
# the workers 30 seconds and drop their exit codes. `exec`: this process becomes the agent and gets those signals.
exec "$python" -u -m dgpt.agent --nnodes "$nnodes" --nproc-per-node "$processes" --max-restarts "$restarts" \
  --rdzv-backend c10d "${rendezvous[@]}" --signals-to-handle SIGQUIT "$@"
