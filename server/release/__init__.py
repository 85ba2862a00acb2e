"""Releases the model of a finished run with its summary and validation scores."""
