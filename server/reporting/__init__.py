"""Reports, tables and figures of a run, made from its run folder alone."""
