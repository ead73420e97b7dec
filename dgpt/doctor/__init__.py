"""Is every node of a job fit to train? `dgpt doctor` by hand; a job asks before its ranks start (dgpt.slurm.preflight).

Each node takes its own readings, the first one gathers and compares them. docs/decisions/preflight.md has the why.
"""
