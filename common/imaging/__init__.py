"""Volumes: reading, geometry, preprocessing, patches, augmentation, sliding-window inference."""
