"""Rounds: which sites take part, what they receive, and how their replies become the next model."""
