"""What the hospital agreed to: what it was shown, what it decided, and what it allows."""
