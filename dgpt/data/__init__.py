"""Raw text to token shards to batches: what a sample holds is a pure function of (data set, seed, sample number)."""
