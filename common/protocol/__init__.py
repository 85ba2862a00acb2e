"""What may cross the wire between a hospital and the server: a closed list."""
