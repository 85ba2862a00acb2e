"""Runs at the hospital."""
