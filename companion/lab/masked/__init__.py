"""Transformers that predict a masked word: many small ones trained together, and the configuration of the paper."""
