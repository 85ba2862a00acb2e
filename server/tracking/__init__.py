"""Shows a run to MLflow, TensorBoard and Prometheus, from the run folder alone."""
