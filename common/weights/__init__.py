"""Models and updates as files of raw values, named by their SHA-256. Flower and PyTorch stay out."""
