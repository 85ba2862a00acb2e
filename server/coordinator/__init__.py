"""A federation's server over a network: its processes from start to end. Nothing here loads PyTorch."""
