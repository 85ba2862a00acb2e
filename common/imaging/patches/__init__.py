"""Sampling, cropping and augmentation of training patches."""
