"""The plan of a federation: all settings that must be equal at all sites, resolved to numbers."""
