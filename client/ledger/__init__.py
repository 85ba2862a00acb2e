"""The hospital's privacy ledger: what its patients have spent. No training code."""
