r"""A small network inside a wider one: copies of every hidden vector, the same function, another trace.

Let the wider network hold $t$ copies of each hidden vector, and let a parameter appear in it $n$ times, each copy
multiplied by $s$. The copies get equal gradients, whose sum, weighted by $s$, is the gradient of the small network:

$$\tilde g=\frac g{ns},\qquad\sum_{\text{copies}}\lVert\tilde g\rVert^2=\frac{\lVert g\rVert^2}{ns^2} .$$

So a matrix between hidden vectors ($n=t^2$, $s=1/t$) keeps its contribution to $\operatorname{tr}G$, an output matrix
($n=t$, $s=1/t$) has it multiplied by $t$, and what is copied as it is ($n=t$, $s=1$) divided by $t$. How $1/t$ is split
between a gain and the matrix behind it changes no function, and changes the trace.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from companion.theory.trace_estimates import Params


@dataclass(frozen=True)
class Rule:
    r"""How a parameter of the small network becomes one of the wider network.

    Attributes:
        axes: dimensions along which there are t copies, negative, so that leading dimensions (runs) do not count.
        power: copies are divided by $t$ to this power.
        parts: (axis, m) for an axis that holds m hidden vectors one after the other, such as (-2, 3) for queries,
            keys and values in one matrix; each is copied by itself.
    """

    axes: tuple[int, ...] = ()
    power: float = 0.0
    parts: tuple[tuple[int, int], ...] = ()

    def factor(self, times: int) -> float:
        r"""Return $1/(ns^2)=t^{2\,\text{power}-\text{number of axes}}$, which multiplies the contribution to tr G.

        Examples:
            >>> [rule.factor(2) for rule in (HIDDEN, MATRIX, OUTPUT, KEEP)]
            [0.5, 1.0, 2.0, 1.0]
        """
        return float(times) ** (2 * self.power - len(self.axes))


KEEP = Rule()  # output bias, and what no hidden vector enters
HIDDEN = Rule((-1,))  # embeddings, LayerNorm's gain and bias, biases of hidden layers
MATRIX = Rule((-2, -1), 1.0)  # from hidden to hidden, whichever of the two dimensions is the input
OUTPUT = Rule((-1,), 1.0)  # (tokens, hidden), from hidden to logits
BALANCED_GAIN = Rule((-1,), 0.5)  # gain and bias of the last LayerNorm, with ...
BALANCED_OUTPUT = Rule((-1,), 0.5)  # ... the other half of 1/t in the output matrix


def tile(params: Params, spec: Mapping[str, Rule], times: int) -> Params:
    r"""Return the parameters of the wider network, in the same dtype.

    The function is kept exactly, to rounding, where

    * every hidden vector enters through linear maps, functions of its entries, sums, LayerNorm with any $\epsilon$
      over all its entries, and attention;
    * attention keeps the dimension of a head, and with it the scale $1/\sqrt{d_{\rm head}}$, and has $t$ times the
      heads, each copy of the hidden vector holding all heads of the small network, in its order;
    * embedding and output matrix are separate parameters, and weights have no norm of their own.

    Args:
        params: those of the small network, any shapes.
        spec: a rule for every parameter.
        times: $t\ge1$.

    Returns:
        The tiled parameters, by the same names.

    Raises:
        ValueError: if names of parameters and rules differ, an axis is missing or not negative, parts do not divide
            it, or `times` is below one.

    References:
        The embedding is that of Liu et al. (2023); conditions and factors are the companion's own: `thm-flat-tiling`.

    Examples:
        >>> import torch
        >>> tile({"U": torch.tensor([[2.0, 4.0]])}, {"U": OUTPUT}, 2)["U"].tolist()
        [[1.0, 2.0, 1.0, 2.0]]
        >>> fused = Rule((-1,), parts=((-1, 2),))
        >>> tile({"b": torch.tensor([1.0, 2.0])}, {"b": fused}, 2)["b"].tolist()
        [1.0, 1.0, 2.0, 2.0]
    """
    _check(params, spec, times)
    wide = {}
    for name, p in params.items():
        rule = spec[name]
        for axis in rule.axes:
            m = dict(rule.parts).get(axis, 1)
            at = p.ndim + axis
            split = p.reshape(*p.shape[:at], m, 1, p.shape[at] // m, *p.shape[at + 1 :])
            copies = split.expand(*p.shape[:at], m, times, p.shape[at] // m, *p.shape[at + 1 :])
            p = copies.reshape(*p.shape[:at], times * p.shape[at], *p.shape[at + 1 :])
        wide[name] = p / float(times) ** rule.power
    return wide


def tiled_trace(contributions: Mapping[str, float], spec: Mapping[str, Rule], times: int) -> float:
    r"""Return $\operatorname{tr}\tilde G=\sum_b\operatorname{tr}G_b/(n_bs_b^2)$ of the wider network.

    Args:
        contributions: $\operatorname{tr}G_b$ of every parameter of the small network.
        spec: a rule for every parameter.
        times: $t\ge1$.

    Returns:
        The trace after tiling.

    Raises:
        ValueError: if the names differ, a contribution is negative or not finite, or `times` is below one.

    References:
        The companion's own; `thm-flat-tiling`, `prop-flat-larger`.

    Examples:
        >>> tiled_trace({"U": 3.0, "b": 1.0}, {"U": OUTPUT, "b": HIDDEN}, 2)
        6.5
    """
    _check(contributions, spec, times)
    for name, value in contributions.items():
        if not 0 <= value < math.inf:
            raise ValueError(f'tiled_trace: contributions are >= 0 and finite, found {value} for "{name}"')
    return sum(value * spec[name].factor(times) for name, value in contributions.items())


def _check(params: Mapping, spec: Mapping[str, Rule], times: int) -> None:
    """Refuse a table that does not fit the parameters, or no copy."""
    if set(params) != set(spec):
        without, unused = sorted(set(params) - set(spec)), sorted(set(spec) - set(params))
        raise ValueError(f"tile: every parameter needs a rule; without one are {without}, of no parameter {unused}")
    if times < 1:
        raise ValueError(f"tile: times is the number of copies, at least 1, got {times}")
    for name, rule in spec.items():
        shape = getattr(params[name], "shape", None)
        if any(axis >= 0 or (shape is not None and -axis > len(shape)) for axis in rule.axes):
            raise ValueError(f'tile: axes of "{name}" are negative, and of its shape {shape}; got {rule.axes}')
        for axis, m in rule.parts:
            if axis not in rule.axes or m < 1 or (shape is not None and shape[axis] % m):
                wanted = f'parts of "{name}", shape {shape}, are (axis, m) with m dividing a tiled axis'
                raise ValueError(f"tile: {wanted}; got {rule.parts}")
