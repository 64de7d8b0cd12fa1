"""Mathematics: pure functions on tensors, in double precision; no data, no training, no book."""
