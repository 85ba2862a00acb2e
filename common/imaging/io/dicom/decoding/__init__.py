"""Decoding compressed frames: compared with their header first, and in a process that a damaged stream may end."""
