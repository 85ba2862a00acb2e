"""Synthetic scans for demonstrations, tests and pretraining. They show nobody."""
