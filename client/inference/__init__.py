"""Trained models in use: predictions for new scans, and their scores."""
