r"""The smallest network with everything: $z(c)=U\tanh(Wx_c)$, few parameters, and minimisers in closed form.

With $h$ hidden units, $n\le h$ contexts whose hidden vectors are linearly independent and $V$ tokens, every $W$ has
output matrices $U$ with $q_\theta=p$: the manifold of minimisers is known, and $\operatorname{rank}H=n(V-1)$ on it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory.curvature import Params


def draw(
    generator: torch.Generator, contexts: int = 6, tokens: int = 4, inputs: int = 5, hidden: int = 7
) -> tuple[Params, Float[Tensor, "n d"], Float[Tensor, "n V"], Float[Tensor, " n"]]:
    r"""Draw parameters off the minimum, contexts $x_c$, their true laws $p$ and weights; by default 63 parameters.

    Args:
        generator: source of randomness.
        contexts: n, at most `hidden`, so that $p$ is within reach.
        tokens: V.
        inputs: dimension d of a context.
        hidden: h.

    Returns:
        Parameters W (h, d) and U (V, h); contexts (n, d); truth (n, V), all positive; weights (n,). All float64.

    Raises:
        ValueError: if there are more contexts than hidden units.

    Examples:
        >>> params, x, p, w = draw(torch.Generator().manual_seed(0))
        >>> sum(part.numel() for part in params.values()), tuple(p.shape)
        (63, (6, 4))
    """
    if contexts > hidden:
        raise ValueError(f"draw: {contexts} contexts cannot be fitted by {hidden} hidden units; take as many at least")
    shapes = (hidden, inputs), (tokens, hidden), (contexts, inputs), (contexts, tokens)
    W, U, x, z = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    weights = torch.rand(contexts, generator=generator, dtype=torch.float64) + 0.5
    return {"W": W, "U": U / hidden**0.5}, x, z.softmax(1), weights / weights.sum()


def logits(params: Params, x: Float[Tensor, "d"]) -> Float[Tensor, "V"]:
    r"""Return $z=U\tanh(Wx)$ of one context.

    Examples:
        >>> logits({"W": torch.zeros(1, 2), "U": torch.ones(3, 1)}, torch.ones(2)).tolist()
        [0.0, 0.0, 0.0]
    """
    return params["U"] @ torch.tanh(params["W"] @ x)


def saturated(params: Params, inputs: Float[Tensor, "n d"], truth: Float[Tensor, "n V"]) -> Params:
    r"""Return the minimiser with the same $W$ whose $U$ is nearest: $U+(\log p-Z)^\top\,(\tanh WX)^+$ up to constants.

    The logits are moved to $\log p$ plus the constant of each context that asks least of $U$.

    Args:
        params: W (h, d) and U (V, h).
        inputs: contexts, shape (n, d).
        truth: $p$, shape (n, V), positive.

    Returns:
        Parameters with $q_\theta=p$ to rounding.

    Raises:
        ValueError: if a true probability is zero, or the hidden vectors of the contexts are linearly dependent.

    Examples:
        >>> start, x, p, w = draw(torch.Generator().manual_seed(0))
        >>> z = torch.stack([logits(saturated(start, x, p), c) for c in x])
        >>> bool(torch.allclose(z.softmax(1), p, atol=1e-12))
        True
    """
    if not truth.min() > 0:
        raise ValueError("saturated: a true probability is zero, which no finite logits predict; mix in a little noise")
    hidden = torch.tanh(inputs @ params["W"].T)
    if torch.linalg.matrix_rank(hidden) < len(hidden):
        raise ValueError(
            f"saturated: the hidden vectors of {len(hidden)} contexts are linearly dependent; draw another W"
        )
    off = truth.log() - hidden @ params["U"].T
    off = off - off.mean(1, keepdim=True)
    return {**params, "U": params["U"] + (torch.linalg.pinv(hidden) @ off).T}
