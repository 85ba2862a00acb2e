"""Forecasts what a privacy budget allows, before training."""
