"""Dataset folders: their layouts, and what they declare about themselves."""
