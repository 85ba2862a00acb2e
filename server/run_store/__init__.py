"""The run folder: all that survives a crash. No other room writes state, checkpoints or locks."""
