"""What a hospital and the server must agree on."""

__version__ = "0.1.0"
