"""Training patches: which part of which patient, cropped and augmented."""
