"""Flat minima: why SGD finds them, a language in which all minimisers are known, tiling, and soups."""

from companion.theory.flatness import (
    drift,
    fluctuation,
    majority_heads,
    majority_trace,
    saturation,
    slow_flow,
    soft_majority,
    softmax_net,
    soup,
    tiling,
)

__all__ = [
    "saturation",
    "softmax_net",
    "soft_majority",
    "majority_trace",
    "majority_heads",
    "slow_flow",
    "drift",
    "fluctuation",
    "tiling",
    "soup",
]
