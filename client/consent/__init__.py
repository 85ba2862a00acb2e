"""The hospital's consent: what it was shown, what it decided, and what it allows."""
