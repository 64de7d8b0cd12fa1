r"""LARS: SGD whose step is a fixed share of each layer's weights, for large batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Lars(torch.optim.Optimizer):
    r"""SGD with momentum on gradients that are scaled layer by layer.

    $$g \leftarrow \theta\,\frac{\lVert w\rVert}{\lVert\nabla\rVert + \eta\lVert w\rVert}\,(\nabla + \eta w),\qquad
    b \leftarrow mb + g,\qquad w \leftarrow w - \mathrm{lr}\,b .$$

    Biases and the scales and shifts of norms, which are the parameters with fewer than two axes, take plain steps
    without decay; so does a weight as long as it, or its gradient, is zero.

    Args:
        params: parameters or groups, as torch's optimisers take them.
        lr: learning rate.
        momentum: $m$.
        weight_decay: $\eta$.
        trust: $\theta$, length of a step over that of the weights, at rate 1 and without momentum.

    Raises:
        ValueError: lr, momentum or weight decay is negative, or trust is not positive.

    References:
        You et al. (2017), Algorithm 1.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} of LARS: expected 0 or more, found {value}")
        if not trust > 0:
            raise ValueError(f"trust of LARS: expected a positive number, found {trust}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters by their gradients."""
        if closure is not None:
            raise ValueError("step of LARS: expected no closure; compute loss and gradients first")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad if p.ndim < 2 else _scaled(p, p.grad, group["weight_decay"], group["trust"])
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                p.sub_(state["momentum_buffer"].mul_(group["momentum"]).add_(g), alpha=group["lr"])


def _scaled(w: Tensor, gradient: Tensor, decay: float, trust: float) -> Tensor:
    """The gradient of a layer with decay, at the length that the layer is to move; no number leaves the device."""
    length, slope = torch.linalg.vector_norm(w), torch.linalg.vector_norm(gradient)
    scale = trust * length / (slope + decay * length)
    return torch.where((length > 0) & (slope > 0), scale * (gradient + decay * w), gradient)
