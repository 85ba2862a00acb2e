"""The federation file, section by section: read and checked before anything runs."""
