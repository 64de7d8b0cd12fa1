"""The configuration of a run, and what it leaves behind."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from companion.lab import optimizers


@dataclass(frozen=True)
class Options:
    """How to train; the whole configuration of a run.

    Attributes:
        steps: number of updates.
        batch_size: positive pairs in one update, over all workers together.
        lr: largest learning rate.
        optimizer: "sgd", "lars", "adam", "adamw" or "muon": Muon for weights, convolutions as matrices (out, in x
            height x width), and AdamW for biases and norms.
        momentum: of SGD and LARS and, as Nesterov's, of Muon.
        weight_decay: added to the gradient as weight_decay times the parameter; under "adamw" and "muon" decoupled,
            the parameter shrinks by rate times weight_decay.
        betas: shares of the past in the two running moments of "adam" and "adamw".
        adamw_lr: largest learning rate of AdamW under "muon"; it rises and falls as that of Muon, lr, does.
        warmup_steps: updates over which the rate rises linearly to lr.
        cosine: whether the rate then falls along half a cosine to 0; else it stays.
        milestones: updates at which the rate falls to a tenth.
        bf16: forward pass in bfloat16 autocast where the device has it in hardware (`precision.bfloat16_is_fast`), in
            float32 elsewhere, which is slower and rounds less; loss and parameters stay in float32. A checkpoint says
            which of the two it was, and does not go on with the other.
        channels_last: memory layout of images and convolutions.
        log_every: updates between two looks at the loss (a look waits for the device).
        checkpoint_every: updates between two checkpoints.
        seed: of the generator that draws the pairs.
        label: what else tells this run from others, its data, say; a checkpoint with another label is refused.
    """

    steps: int = 600
    batch_size: int = 256
    lr: float = 0.06
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    adamw_lr: float = 1e-3
    warmup_steps: int = 0
    cosine: bool = True
    milestones: tuple[int, ...] = ()
    bf16: bool = False
    channels_last: bool = False
    log_every: int = 20
    checkpoint_every: int = 500
    seed: int = 0
    label: str = field(default="", repr=False)  # names of states are made from the repr: it stays what it was

    def __post_init__(self) -> None:
        """Refuse a configuration that cannot be meant."""
        if self.optimizer not in optimizers.NAMES:
            raise ValueError(f"optimizer: expected one of {', '.join(optimizers.NAMES)}, found {self.optimizer!r}")
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")

    def rate(self, step: int, largest: float | None = None) -> float:
        """Learning rate of update number `step` = 0, 1, ...; `largest` in place of lr, if given.

        >>> [Options(steps=4, lr=1.0, warmup_steps=2).rate(step) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
        """
        largest = self.lr if largest is None else largest
        if step < self.warmup_steps:
            return largest * (step + 1) / self.warmup_steps
        lr = largest * 0.1 ** sum(step >= milestone for milestone in self.milestones)
        if not self.cosine:
            return lr
        return lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / (self.steps - self.warmup_steps)))


@dataclass(frozen=True)
class History:
    """What a run leaves behind.

    Attributes:
        steps: (steps,) int64, 1, 2, ...
        losses: (steps,) float64, the loss of each batch before its update.
        seconds: wall time of the loop, over all its parts if it was resumed.
    """

    steps: Tensor
    losses: Tensor
    seconds: float
