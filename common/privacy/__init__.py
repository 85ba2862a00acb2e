"""Accounting and calibration for differential privacy. Nothing here adds noise."""
