"""A site's processes from preflight to the end. Nothing here reads scans."""
