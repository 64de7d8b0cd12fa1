"""What estimates of traces share: named parameters of a function or a network, a result with its standard error."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit
from torch import Tensor, nn
from torch.func import functional_call

Params = dict[str, Tensor]


@dataclass(frozen=True)
class TraceEstimate:
    """An unbiased estimate of a trace.

    Attributes:
        value: the estimate.
        stderr: its standard error; zero up to rounding where the estimate is exact.
        samples: independent numbers whose spread is `stderr`.
    """

    value: float
    stderr: float
    samples: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        r"""Return the confidence interval, value $\pm\,t_{n-1}\cdot$ stderr with Student's quantile for n samples.

        Examples:
            >>> low, high = TraceEstimate(10.0, 1.0, 2).interval(0.5)  # the upper quartile of t_1 is 1
            >>> round(low, 6), round(high, 6)
            (9.0, 11.0)
        """
        if not 0 < level < 1:
            raise ValueError(f"TraceEstimate: level is a probability between 0 and 1, got {level}")
        half = float(stdtrit(self.samples - 1, (1 + level) / 2)) * self.stderr
        return self.value - half, self.value + half


def of_module(module: nn.Module, names: Sequence[str] | None = None) -> tuple[Params, Callable[..., Any]]:
    """Return a network's parameters, detached, and the network as a function of them: `call(params, *inputs)`.

    Args:
        module: network in evaluation mode.
        names: parameters to differentiate by, in this order; the others are constants. None for all.

    Returns:
        The parameters by name, and the function.

    Raises:
        ValueError: if a part of the module is in training mode, a name is unknown, or a parameter that is wanted
            does not require gradients.

    Examples:
        >>> import torch
        >>> params, call = of_module(nn.Linear(2, 1, bias=False).eval())
        >>> call({"weight": torch.tensor([[1.0, 2.0]])}, torch.tensor([3.0, 4.0])).tolist()
        [11.0]
    """
    for name, part in module.named_modules():
        if part.training:
            what = f'"{name}" ({type(part).__name__})' if name else type(part).__name__
            raise ValueError(f"of_module: {what} is in training mode, where chance may enter; call .eval() first")
    every = dict(module.named_parameters())
    wanted = list(every) if names is None else list(names)
    if unknown := [name for name in wanted if name not in every]:
        raise ValueError(f"of_module: no parameter {unknown}; there are {list(every)}")
    if frozen := [name for name in wanted if not every[name].requires_grad]:
        raise ValueError(
            f"of_module: {frozen} do not require gradients; call requires_grad_() on them, or leave them out of names"
        )

    def call(params: Params, *inputs: Any) -> Any:
        return functional_call(module, params, inputs)  # the others are the module's own

    return checked({name: every[name] for name in wanted}, "of_module"), call


def checked(params: Params, name: str) -> Params:
    """Return parameters detached, or say which of them cannot be differentiated by."""
    if not params:
        raise ValueError(f"{name}: there are no parameters to differentiate by")
    for key, p in params.items():
        if not p.is_floating_point():
            raise ValueError(f'{name}: parameter "{key}" is {p.dtype}; derivatives need a float dtype')
    return {key: p.detach() for key, p in params.items()}


def in_chunks(chunk: int | None, count: int, name: str) -> int:
    """Return how many to treat at once."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"{name}: chunk is a number at least 1, or None for all at once; got {chunk}")
    return max(1, count) if chunk is None else chunk


def estimate(terms: Tensor, name: str, exact: float = 0.0) -> TraceEstimate:
    """Mean of independent terms, plus what is known without error."""
    n, terms = len(terms), terms.double()
    if not terms.isfinite().all() or not math.isfinite(exact):
        raise ValueError(f"{name}: a term is not finite; the function or a derivative overflows at these parameters")
    return TraceEstimate(exact + float(terms.mean()), float(terms.std()) / math.sqrt(n), n)
