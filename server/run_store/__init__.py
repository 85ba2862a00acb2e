"""The run folder: everything that survives a crash. No other package writes state, checkpoints or locks."""
