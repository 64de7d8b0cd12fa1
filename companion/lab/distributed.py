r"""One training step on several workers, with exactly the numbers of one process.

Every worker holds the same parameters, embeds its own rows of the batch, and evaluates the loss $\mathcal L$ of the
*whole* batch, whose sums over rows pass through `sum_over_workers`. Backpropagation through that sum adds what all W
workers ask for, so it differentiates $\sum_w \mathcal L = W\mathcal L$. The **mean** of the workers' parameter
gradients is therefore the gradient of $\mathcal L$: no factor W is left over, and none is missing.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def start() -> torch.device:
    """Join the workers that torchrun has started (nccl on GPUs, else gloo) and return this worker's device.

    Without torchrun nothing is joined: the device is the GPU if there is one, else the CPU.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def workers() -> int:
    """W, the number of workers; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's number, 0 ... W - 1."""
    return dist.get_rank() if workers() > 1 else 0


def own_rows(n: int) -> slice:
    """The rows of a batch of n that belong to this worker.

    Raises:
        ValueError: n is not a multiple of the number of workers.

    >>> own_rows(8)
    slice(0, 8, None)
    """
    share, rest = divmod(n, workers())
    if rest:
        raise ValueError(f"batch of {n}: expected a multiple of the {workers()} workers; choose batch_size accordingly")
    return slice(rank() * share, (rank() + 1) * share)


class _Sum(torch.autograd.Function):
    # torch.distributed.nn.functional.all_reduce is deprecated in torch 2.14 and its successor is private.

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return _Sum.apply(gradient)  # type: ignore[return-value]


def sum_over_workers(x: Tensor) -> Tensor:
    """The sum of the workers' tensors; gradients are summed on the way back. The identity in one process."""
    return _Sum.apply(x) if workers() > 1 else x  # type: ignore[return-value]


def gather(x: Float[Tensor, "m k"]) -> Float[Tensor, "n k"]:
    """The rows of all workers, in order of rank; gradients return to the rows' owners. The identity in one process."""
    if workers() == 1:
        return x
    before, after = rank() * len(x), (workers() - rank() - 1) * len(x)
    return sum_over_workers(torch.cat([x.new_zeros(before, *x.shape[1:]), x, x.new_zeros(after, *x.shape[1:])]))


def average_gradients(model: nn.Module) -> None:
    """Replace each parameter's gradient by the mean over the workers: the gradient of the global loss."""
    if workers() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, (flat / workers()).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class GlobalBatchNorm(_BatchNorm):
    """Batch norm with the moments of all workers' rows; torch's SyncBatchNorm does the same on GPUs only."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm: expected (n, channels, ...), found {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel by its mean and variance over all rows of all workers."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.ndim)]
        n = workers() * input.numel() // input.shape[1]
        x = input.float() if input.dtype == torch.bfloat16 else input  # moments want more than eight bits
        mean = sum_over_workers(x.sum(axes)) / n
        centred = x - mean.view(shape)
        variance = sum_over_workers(centred.square().sum(axes)) / n
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        out = centred * (self.weight / (variance + self.eps).sqrt()).view(shape) + self.bias.view(shape)
        return out.to(input.dtype)


def with_global_batch_norm(model: nn.Module) -> nn.Module:
    """Let every batch norm of `model` see the rows of all workers (in place); nothing to do in one process."""
    if workers() > 1:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.__class__ = GlobalBatchNorm  # type: ignore[assignment]  # same state, another forward
    return model
