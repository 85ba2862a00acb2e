"""Configuration: the federation file and the kits. Everything is validated before anything runs."""
