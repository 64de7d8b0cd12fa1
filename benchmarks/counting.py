"""Operations and memory of one update, counted on tensors without data: no GPU is asked, and nothing is computed.

Every product and convolution is counted, forward and backward, and every tensor that is kept for the backward pass, at
the real batch and in the real precision, on torch's fake tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from companion.lab import train
from companion.lab.masked import adversary, tables, training
from companion.lab.masked.architecture import features
from companion.lab.masked.sentences import Batch
from companion.lab.masked.transformer import Transformers
from companion.theory.trace_estimates import Params

MOMENTS = {"sgd": 1, "lars": 1, "adam": 2, "adamw": 2}  # numbers an optimiser keeps for each parameter


@dataclass(frozen=True)
class Step:
    """One update, and one look at a view without gradient.

    Attributes:
        operations: of an update: forward, backward, and a target's forward.
        look: operations of the encoder for one view, without gradient.
        kept: bytes that wait for the backward pass, weights in bfloat16 included.
        state: bytes of parameters, the optimiser's moments and buffers; gradients come when what was kept goes.
    """

    operations: float
    look: float
    kept: float
    state: float


def moments(options: train.Options) -> int:
    """Numbers that the optimiser remembers of each parameter."""
    return 0 if options.optimizer == "sgd" and not options.momentum else MOMENTS[options.optimizer]


def count(build: Callable[[], nn.Module], run: Callable[[nn.Module], Any], bf16: bool) -> tuple[float, float]:
    """Operations of `run` and of its backward pass, and bytes kept for the latter beyond the parameters.

    The model is made of tensors without data. Autocast is that of the CPU, which casts the same products.
    """
    model, kept = copy.deepcopy(build()), {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes(), x
        return x

    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda x: x):
            with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                found = run(model)
            if found.requires_grad:
                found.backward(torch.empty_like(found))
    return float(counter.get_total_flops()), float(sum(size for key, (size, _) in kept.items() if key not in own))


def loss_operations(loss: Callable[..., Tensor], rows: int, width: int) -> float:
    """Operations of a loss of two batches of rows, forward and backward."""
    z1, z2 = (torch.empty(rows, width, device="meta", requires_grad=True) for _ in range(2))
    with FlopCounterMode(display=False) as counter:
        loss(z1, z2).backward()
    return float(counter.get_total_flops())


def of_images(model: nn.Module, encoder: nn.Module, loss: Callable[..., Tensor], options: Any, side: int) -> Step:
    """An update of `train.fit` on pairs of images, and a look at one view."""
    n = options.batch_size
    layout = torch.channels_last if options.channels_last else torch.preserve_format

    def whole() -> nn.Module:
        return model.train().to(memory_format=layout)  # type: ignore[call-overload]

    def views(rows: int) -> Tensor:
        return torch.empty(rows, 3, side, side).to(memory_format=layout)

    width = 0

    def step(network: nn.Module) -> Tensor:
        nonlocal width
        z = network(views(2 * n))
        width = z.shape[1]
        return z

    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    state = sum(x.nbytes for x in (*model.parameters(), *model.buffers())) + moments(options) * trained
    operations, kept = count(whole, step, options.bf16)
    look, _ = count(
        lambda: copy.deepcopy(encoder).requires_grad_(False).eval(), lambda network: network(views(1)), False
    )
    return Step(operations + loss_operations(loss, n, width), look, kept, float(state))


@cache
def of_sentences(name: str, micro: int) -> Step:
    """An update of a cell of `masked.tables`, so many sentences at a time."""
    cell = tables.cells()[name]
    shape, n = cell.network, cell.options.batch_size
    sizes = {name: torch.empty(size, device="meta") for name, size in shape.sizes.items()}

    def part(model: nn.Module) -> Tensor:
        tokens = torch.zeros(1, micro, shape.length, dtype=torch.int64)
        at = torch.zeros(1, micro, dtype=torch.int64)
        params: Params = dict(model.named_parameters())
        low = training.cross_entropy(params, shape, Batch(tokens, at, at))
        if cell.algorithm != "adversarial":
            return low.sum()
        phi = features(
            params, shape, tokens, at if cell.data == "hmm" else None
        )  # what the heads of the task are given
        phi = (phi if cell.data == "hmm" else phi.flatten(2)).float()
        return (low - adversary.unexplained(phi, at, 2, 0.1)).sum()

    operations, kept = count(lambda: Transformers.of(shape, sizes), part, bf16=True)
    sums = micro < n  # gradients of the parts are added up
    state = 4 * shape.parameters * (1 + moments(cell.options) + sums)
    return Step(operations * n / micro, 0.0, kept, float(state))
