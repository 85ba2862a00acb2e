"""Runs a federation's server processes over a network. Nothing here loads PyTorch."""
