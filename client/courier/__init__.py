"""The networked part of a site, which sees no scans. Nothing here reads data, decides consent or imports Torch."""
