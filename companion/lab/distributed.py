r"""One training step on several workers, with exactly the numbers of one process.

Every worker holds the same parameters, embeds its own rows of the batch, and evaluates the loss $\mathcal L$ of the
*whole* batch, whose sums over rows pass through `sum_over_workers`. Backpropagation through that sum adds what all W
workers ask for, so it differentiates $\sum_w \mathcal L = W\mathcal L$. The **mean** of the workers' parameter
gradients is therefore the gradient of $\mathcal L$: no factor W is left over, and none is missing.

What that costs, $T(N)=v+c/N+2\frac{N-1}Nb/B+2(N-1)\ell m$ seconds a step, is written down in `companion.lab.scaling`
and measured at one and two workers (`benchmarks/RECORDS.md`, workers). b does not depend on the batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class WorkerLostError(RuntimeError):
    """A collective failed, because another worker has ended or cannot be reached."""


def choose(asked: str = "auto") -> torch.device:
    """The device of this worker: with "auto" a GPU if there is one, else the CPU.

    Args:
        asked: "auto", "cpu" or "cuda"; each worker of a machine has a GPU of its own, the one with its local number.

    Raises:
        ValueError: another name; no GPU where one is asked for; more workers on this machine than it has GPUs.

    >>> choose("cpu")
    device(type='cpu')
    """
    if asked not in ("auto", "cpu", "cuda"):
        raise ValueError(f'device: expected "auto", "cpu" or "cuda", found {asked!r}')
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "cpu" or (asked == "auto" and not found):
        return torch.device("cpu")
    if not found:
        raise ValueError("device cuda: expected a GPU that torch can use, found none; take the device cpu")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if here > found:
        raise ValueError(
            f"{here} workers on this machine: expected at most one a GPU, found {found} GPU{'s' * (found > 1)}; "
            f"take --nproc_per_node={found}, or the device cpu"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def start(asked: str = "auto") -> torch.device:
    """Join the workers that torchrun has started (nccl on GPUs, else gloo) and return this worker's device.

    Without torchrun nothing is joined. `choose` says what may be asked for, and what is refused.
    """
    device = choose(asked)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> None:
    """Leave the workers that `start` has joined; nothing to do in one process."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


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
        with _together():
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
    with _together():
        dist.all_reduce(flat)
    for gradient, part in zip(gradients, (flat / workers()).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def agree(number: int, device: torch.device) -> bool:
    """Whether all workers say the same number; True in one process. Every worker has to ask."""
    if workers() == 1:
        return True
    both = torch.tensor([number, -number], device=device)
    with _together():
        dist.all_reduce(both, dist.ReduceOp.MAX)
    largest, smallest = both.tolist()
    return largest == -smallest


@contextmanager
def one_first() -> Iterator[None]:
    """Let one worker of each machine do something first, the others when it is done: fetch data, and then read it."""
    waits = workers() > 1 and os.environ.get("LOCAL_RANK", "0") != "0"
    if waits:
        with _together():
            dist.barrier()
    yield
    if workers() > 1 and not waits:
        with _together():
            dist.barrier()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().splitlines()
        raise WorkerLostError(
            f"another worker has ended or cannot be reached ({said[-1] if said else error})"
        ) from error


class _Normalised(torch.autograd.Function):
    """Rows less their mean, over their standard deviation, times weight, plus bias; both moments those of all workers.

    One message there, each worker's own moments, and one back, the sums over rows of the gradient and of its product
    with the output's normalised rows. What is done for each row is left to torch's batch norm with given moments, which
    takes bfloat16 rows with float32 moments as it does in one process.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        own = weight.new_zeros(2, x.shape[1])  # this worker's moments; torch.var_mean takes much longer
        torch.batch_norm_update_stats(x, own[0], own[1], momentum=1.0)
        n = x.numel() // x.shape[1]
        means, variances = gather(own[None]).unbind(1)  # (workers, channels) each
        variances = variances * ((n - 1) / n)  # torch keeps the unbiased one
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        with torch.enable_grad():
            y = nn.functional.batch_norm(leaves[0], mean, variance, leaves[1], leaves[2], training=False, eps=eps)
        ctx.kept = y, leaves, mean, (variance + eps).rsqrt()
        ctx.mark_non_differentiable(mean, variance)
        return y.detach(), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        (y, leaves, mean, scale), ctx.kept = ctx.kept, None  # memory is free before the loss is
        x, weight, _ = leaves
        by_x, by_weight, by_bias = torch.autograd.grad(y, leaves, gradients[0])
        both = sum_over_workers(torch.stack([by_weight, by_bias])) / (workers() * x.numel() / len(mean))
        slope = -weight.detach() * scale.square() * both[0]
        offset = -weight.detach() * scale * both[1] - slope * mean
        nought, one = torch.zeros_like(mean), torch.ones_like(mean)
        # x slope + offset in one pass over the rows
        line = nn.functional.batch_norm(x.detach(), nought, one, slope, offset, training=False, eps=0.0)
        return by_x.add_(line), by_weight, by_bias, None


class GlobalBatchNorm(_BatchNorm):
    """Batch norm with the moments of all workers' rows, as many on each; torch's SyncBatchNorm does so on GPUs only."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm: expected (n, channels, ...), found {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel by its mean and variance over all rows of all workers."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        exact = torch.promote_types(input.dtype, torch.float32)  # moments want more than bfloat16's eight bits
        ones, zeros = (make(self.num_features, dtype=exact) for make in (input.new_ones, input.new_zeros))
        weight, bias = (ones if self.weight is None else self.weight), (zeros if self.bias is None else self.bias)
        y, mean, variance = _Normalised.apply(input, weight, bias, self.eps)  # type: ignore[misc]
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            n = workers() * input.numel() // input.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        return y


def with_global_batch_norm(model: nn.Module) -> nn.Module:
    """Let every batch norm of `model` see the rows of all workers (in place); nothing to do in one process."""
    if workers() > 1:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.__class__ = GlobalBatchNorm  # type: ignore[assignment]  # same state, another forward
    return model
