"""What the server of the pool imports before it forks workers. It may start no thread."""

import os

os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")

from dgpt.agent.forked import preload  # libgomp reads the environment when torch loads it

preload("pretrain")
