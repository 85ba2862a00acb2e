"""BIDS, the Brain Imaging Data Structure: scans and label maps that are told apart by the entities in their names."""
