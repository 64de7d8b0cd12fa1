"""The optimiser of a run of `companion.lab.train.fit`, with a model's own wishes about who learns how fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from companion.lab.lars import Lars
from companion.lab.muon import Muon

if TYPE_CHECKING:
    from torch import nn

    from companion.lab.train import Options

NAMES = ("sgd", "lars", "adam", "adamw", "muon")


@runtime_checkable
class Grouped(Protocol):
    """A model whose parts learn at rates of their own."""

    def parameter_groups(self, options: Options) -> list[dict[str, Any]]:
        """Groups as torch's optimisers take them: "params", and "lr" or "weight_decay" where they differ.

        A group with "constant" keeps its rate, whatever the schedule of the run.
        """
        ...


def build(model: nn.Module, options: Options) -> torch.optim.Optimizer | Muon:
    """The optimiser that `options` names, for the parameters of `model` that require gradients.

    If the model has `parameter_groups`, its groups are taken. Each group keeps its largest rate as "largest_lr", which
    the schedule scales.

    Args:
        model: what to train.
        options: the configuration of the run.

    Returns:
        The optimiser.

    Raises:
        ValueError: the model's groups leave out a parameter that requires a gradient; or they ask Muon, which has one
            rate for all weights, for more.
    """
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if isinstance(model, Grouped):
        groups = model.parameter_groups(options)
        grouped = {id(p) for group in groups for p in group["params"]}
        if left := [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in grouped]:
            raise ValueError(f"parameter_groups: expected every trained parameter, found none of {', '.join(left)}")
    if options.optimizer == "muon":
        if asked := {key for group in groups for key in group} - {"params"}:
            raise ValueError(f'muon: expected one rate for all weights, found groups with {sorted(asked)}; use "sgd"')
        optimizer = Muon(model, options.lr, options.adamw_lr, options.momentum, options.weight_decay)
    elif options.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, options.lr, options.betas, weight_decay=options.weight_decay)
    elif options.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, options.lr, options.betas, weight_decay=options.weight_decay)
    elif options.optimizer == "lars":
        optimizer = Lars(groups, options.lr, options.momentum, options.weight_decay)
    else:
        optimizer = torch.optim.SGD(groups, options.lr, options.momentum, weight_decay=options.weight_decay)
    for group in optimizer.param_groups:
        group["largest_lr"] = group["lr"]
    return optimizer
