"""The half of a site that has a network and no scans. Nothing here reads data, decides consent or imports Torch."""
