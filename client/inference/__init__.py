"""Use of trained models: predictions for new scans, and their scores."""
