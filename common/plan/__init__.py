"""The plan of a federation: everything that must be equal at all sites, resolved to numbers."""
