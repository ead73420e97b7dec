"""Signs of life: what each rank says of itself, and how the agents find out that one hangs or is slow. No torch."""
