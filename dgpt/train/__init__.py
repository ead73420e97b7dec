"""The training loop and the objects beside it: schedule, metrics, timing, profiling, stopping."""
