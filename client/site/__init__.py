"""A site's processes, from preflight to shutdown. Nothing here reads scans."""
