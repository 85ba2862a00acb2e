"""Kits, and the certificate authority behind them. Nothing here knows of rounds."""
