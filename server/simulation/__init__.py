"""Simulated hospitals on one machine. The only room of the server that imports ``client``."""
