"""Muon for the weights of a model and AdamW for the rest, as one optimiser that `companion.lab.train.fit` can drive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Muon:
    """torch's Muon, which takes matrices only, on every weight, and AdamW on biases and norms.

    A convolution's weight is the matrix (out, in x height x width): a leaf of its own that shares the weight's storage,
    so that an update of one is an update of the other. Gradients are handed over before each step.

    Args:
        model: what to train; parameters that require no gradient are left out.
        lr: rate of Muon.
        adamw_lr: rate of AdamW.
        momentum: of Muon, in Nesterov's form.
        weight_decay: decoupled, for both.

    Raises:
        ValueError: the memory layout of a weight leaves it no such matrix.

    References:
        Jordan et al. (2024), the post that introduced Muon; torch.optim.Muon.
    """

    def __init__(
        self, model: nn.Module, lr: float, adamw_lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        self.weights = [p for p in trained if p.ndim >= 2]
        self.matrices = [_matrix(p.detach()).requires_grad_() for p in self.weights]
        rest = [p for p in trained if p.ndim < 2]
        self.parts: list[torch.optim.Optimizer] = []
        if self.matrices:
            self.parts.append(torch.optim.Muon(self.matrices, lr, weight_decay=weight_decay, momentum=momentum))
        if rest:
            self.parts.append(torch.optim.AdamW(rest, adamw_lr, weight_decay=weight_decay))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both, for a schedule to set their rates."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad()
        for weight in self.weights:
            weight.grad = None

    def step(self) -> None:
        """Update all parameters by their gradients."""
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.reshape(matrix.shape)
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of both."""
        for part, its in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(its)


def _matrix(weight: Tensor) -> Tensor:
    try:
        return weight.view(len(weight), -1)
    except RuntimeError:
        raise ValueError(
            f"muon: a weight of shape {tuple(weight.shape)} is no matrix in its own memory; set channels_last=False"
        ) from None
