"""The one port that hospitals reach. Strategies, rounds and reports do not belong here."""
