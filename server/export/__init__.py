"""A finished run's model in the formats that others use, with its card, its manifest and the federation's signature."""
