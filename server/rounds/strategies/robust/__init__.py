"""Strategies that hold back what a minority of malicious sites sends, one per file."""
