"""Dataset folders: their layouts and metadata."""
