"""The launcher of the ranks of one node: launch/torchrun.sh runs `python -m dgpt.agent` with torchrun's options."""
