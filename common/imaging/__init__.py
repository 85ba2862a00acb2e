"""Image processing: geometry, resampling, preprocessing, patches and sliding-window prediction."""
