"""The privacy that a hospital's patients have spent. Nothing here trains."""
