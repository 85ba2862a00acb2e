"""A scan's way to patches and back: geometry, resampling, preprocessing, sliding-window prediction."""
