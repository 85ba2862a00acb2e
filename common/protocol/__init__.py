"""The protocol between hospitals and the server: a closed list of messages."""
