"""Flat minima: saturation, the drift of SGD along the minimisers, and what it changes."""
