#!/bin/sh
# Debian's Slurm and munge for tests/slurm, where something is missing: 12 MiB, 8 s. Needs root; else says what follows.
set -eu
PATH=$PATH:/usr/sbin:/sbin

missing=
for program in munged slurmctld slurmd sbatch nsenter ip; do
  command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "tests/slurm will be skipped: not here:$missing; as root on Debian or Ubuntu 'make slurm' installs them" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # start no service
apt-get update -qq || echo 'apt-get update failed' >&2
apt-get install -qq --no-install-recommends slurmctld slurmd slurm-client munge iproute2 util-linux >/dev/null || echo 'Slurm could not be installed: tests/slurm will be skipped' >&2
