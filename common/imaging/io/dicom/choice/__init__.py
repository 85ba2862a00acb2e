"""Which series of an archive are used, as the hospital's rules say."""
