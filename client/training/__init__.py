"""Local steps at a site, with and without differential privacy. No network, no files."""
