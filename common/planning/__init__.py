"""Derives the plan that all sites share from a federation file and its data."""
