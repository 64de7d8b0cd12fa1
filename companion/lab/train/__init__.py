"""Training: one loop for one process or torchrun, CPU or GPU; ``python -m companion.lab.train`` is its command line."""

from companion.lab.train.loop import Follows, Loss, Objective, Observer, Pairs, descend, fit, image_pairs
from companion.lab.train.options import History, Options

__all__ = [
    "Options", "History", "fit", "descend", "image_pairs", "Pairs", "Loss", "Objective", "Observer", "Follows",
]  # fmt: skip
