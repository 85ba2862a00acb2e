"""Sends a run's parameters, metrics and results to MLflow and TensorBoard, from the run folder alone."""
