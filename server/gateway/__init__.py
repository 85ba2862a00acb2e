"""The one port that hospitals reach. What strategies, rounds and reports do has no place in here."""
