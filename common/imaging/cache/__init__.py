"""Preprocessed cases, made once and kept on the local disk."""
