#!/bin/sh
# Become a host of the cluster, as process 1 of new namespaces: host.sh NAME FOLDER CGROUP. See hosts.py.
set -eu
name=$1 folder=$2 cgroup=$3

hostname "$name"
mount --bind "$folder/etc/hosts" /etc/hosts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=1777 scratch "$folder/scratch"
ip link set lo up

# Process 1 has to collect orphans: the kernel does it where SIGCHLD is ignored, which a shell cannot set for a program.
live='echo ready; exec env --ignore-signal=CHLD sleep infinity >/dev/null'
[ "$cgroup" != - ] || exec sh -c "$live"

# A freezer hierarchy of its own: proctrack/cgroup calls its folder slurm_NAME, whatever cluster the node belongs to.
echo $$ >"$cgroup/cgroup.procs"
own='umount /sys/fs/cgroup/freezer && mount -t cgroup -o freezer freezer /sys/fs/cgroup/freezer'
exec unshare --cgroup sh -c "$own; $live"
