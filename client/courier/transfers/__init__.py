"""Resumable downloads of models and uploads of updates, in windows."""
