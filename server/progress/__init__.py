"""What people watch during a run, on a terminal or as plain lines."""
