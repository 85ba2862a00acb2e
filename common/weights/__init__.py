"""Weights and updates as files of raw values, named by their SHA-256; independent of Flower and PyTorch."""
