"""Code that hospitals and the server share."""

__version__ = "0.1.0"
