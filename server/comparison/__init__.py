"""Baselines and algorithms on the same data: who trains what, statistics over patients, and the report."""
