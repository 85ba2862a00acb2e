"""Kits, and the certificate authority behind them. Rounds do not belong here."""
