"""The run folder: all that survives a crash. No other room writes to it."""
