"""The coordinator's pages: runs as they go, what their sites do, and the few things to decide.

No scan is ever shown.
"""
