"""Runs at the coordinator."""
