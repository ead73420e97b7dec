"""Runs under Slurm: submit, start on all nodes, requeue, status. Nothing here imports torch, so that it is quick."""
