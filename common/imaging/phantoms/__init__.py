"""Synthetic scans for demonstrations, tests and pretraining; they contain no patient data."""
