"""The dossier of a run for review boards and data-protection officers: what the run shows, and what people must add."""
