"""Segmentation networks and trained models on disk."""
