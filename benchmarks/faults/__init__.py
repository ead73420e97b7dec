"""Faults of checkpoints, each in processes of its own: kills, full disks, damage. See benchmarks.checkpoint_faults."""
