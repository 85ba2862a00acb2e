"""Cache of preprocessed cases on the local disk."""
