"""What makes one GPT run on many ranks: the mesh, tensor parallelism, activation checkpointing, the ZeRO engine."""
