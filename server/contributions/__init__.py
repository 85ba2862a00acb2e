"""Contributions: what each simulated site adds to the model, from the updates that a run kept."""
