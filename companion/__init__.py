"""A small companion to the theory of self-supervised learning: theory, laboratory and ledger."""

__version__ = "0.1.0"
