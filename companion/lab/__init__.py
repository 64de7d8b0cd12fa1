"""Experiments: data, augmentation, encoders, one training loop, probes, graphs of real images."""
