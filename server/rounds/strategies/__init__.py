"""Aggregation strategies, one per file, independent of Flower and of files."""
