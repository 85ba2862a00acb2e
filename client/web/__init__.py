"""The hospital's pages: what is asked, decided, sent and spent, and its own scans, on this machine and nowhere else."""
