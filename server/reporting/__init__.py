"""What people read after a run: reports, tables and figures, from the run folder alone."""
