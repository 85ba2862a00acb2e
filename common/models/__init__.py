"""Segmentation networks, and trained ones on disk."""
