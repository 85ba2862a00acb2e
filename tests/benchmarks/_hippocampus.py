"""The hippocampus example without its recipe, for benchmarks that compare something else, or recipes."""

from __future__ import annotations

PLAIN = (
    "rounds=12",
    "training={local_steps: 50, batch_size: 2, learning_rate: 0.002}",
    "model={}",
    "strategy={weights: patients}",
)
"""Changes to ``deploy/examples/hippocampus.yaml``: default network and augmentation, and FedAvg with equal steps."""
