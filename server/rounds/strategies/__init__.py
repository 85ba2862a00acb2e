"""How accepted updates become the next model, one strategy a file. Nothing here knows of Flower or of files."""
