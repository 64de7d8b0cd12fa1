r"""Attentive alignment: edges of the positive-pair graph weighed by how similar their ends are already.

The loss $\frac12\mathbb E\,a(x,x^+)\lVert f_x-f_{x^+}\rVert^2$ with weights $a$ held fixed is alignment on the graph
$A^a = A\circ a$. The slides give the loss and not the weights. Here are two readings: a softmax over the neighbours of
a view, as in graph attention networks, and the softmax over the positive pairs of a batch, as in the released code.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from companion.theory.feature_norms import row_normalise
from companion.theory.losses._shared import check_rows
from companion.theory.message_checks import adjacency
from companion.theory.mode_laws import Scalar

__all__ = [
    "cosines",
    "attention_weights",
    "attended_graph",
    "without_self_loops",
    "attentive_loss",
    "attentive_gradient",
    "batch_attention",
    "cross_share",
]

Square = Float[Tensor, "N N"]


def cosines(U: Float[Tensor, "N k"]) -> Square:
    r"""Return the cosines between all rows, the similarity that attention starts from.

    Args:
        U: features, shape (N, k), any float dtype.

    Returns:
        $f_x^\top f_{x'}/\lVert f_x\rVert\lVert f_{x'}\rVert$, shape (N, N), float64.

    Raises:
        ValueError: if a row is zero; it names the row.

    Examples:
        >>> cosines(torch.tensor([[3.0, 4.0], [2.0, 0.0]])).tolist()
        [[1.0, 0.6], [0.6, 1.0]]
    """
    rows = row_normalise(U)
    return rows @ rows.T


def attention_weights(similarity: Square, A: Square, beta: float, *, attend_self: bool = True) -> Square:
    r"""Weigh each edge by a softmax over the neighbours of its first end.

    $$a(x,x^+) = \frac{e^{\beta s(x,x^+)}}{\sum_{x''}A(x''|x)\,e^{\beta s(x,x'')}},\qquad A(x''|x) = A_{xx''}/p_x,$$

    so that the mean of $a$ over the neighbours is 1 and $A\circ a$ has the row sums $p$ of $A$. It is not symmetric.

    Args:
        similarity: $s$, shape (N, N), for instance `cosines` of features; a gradient may pass through it.
        A: graph, shape (N, N), symmetric, non-negative, no isolated vertex; any total weight.
        beta: inverse temperature $\beta\ge0$; 0 gives weight 1 to every edge.
        attend_self: False leaves self-loops at weight 1 and shares the rest of each row's mass among the other
            neighbours. A view is most similar to itself, so attention favours self-loops; this is the control.

    Returns:
        $a$, shape (N, N), float64; 0 where there is no edge.

    Raises:
        ValueError: if the shapes do not fit, `beta` is negative, or $A$ is no graph.

    References:
        Veličković et al. (2018), for the softmax; on this graph the companion's own; `def-attention`, `prop-attention`.

    Examples:
        >>> s, A = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log(), torch.full((2, 2), 0.25)  # e^s = 3 or 1
        >>> attention_weights(s, A, 1.0).round(decimals=6).tolist()
        [[1.5, 0.5], [0.5, 1.5]]
        >>> attention_weights(s, A, 1.0, attend_self=False).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    A, p = adjacency(A, "attention_weights")
    if similarity.shape != A.shape:
        hint = "of features U, pass cosines(U)"
        raise ValueError(f"attention_weights: similarity {tuple(similarity.shape)} must be {tuple(A.shape)}; {hint}")
    if not 0 <= beta < torch.inf:
        raise ValueError(f"attention_weights: beta must be finite and not negative, got {beta}")
    fixed = torch.zeros_like(p) if attend_self else A.diagonal() / p
    edge = A > 0 if attend_self else (A > 0) & ~torch.eye(len(A), dtype=torch.bool)
    score = torch.where(edge, beta * similarity.double(), -torch.inf)
    if not score[edge].isfinite().all():
        raise ValueError("attention_weights: a similarity on an edge is infinite or not a number")
    shift = score.detach().amax(1, keepdim=True)
    power = torch.where(edge, (score - shift.nan_to_num(neginf=0.0)).exp(), 0.0)
    mass = (A / p[:, None] * power).sum(1)
    a = power * ((1 - fixed) / torch.where(mass > 0, mass, 1.0))[:, None]
    return a if attend_self else a + torch.diag((A.diagonal() > 0).double())


def attended_graph(A: Square, a: Square, *, symmetric: bool = True) -> Square:
    r"""Return the graph that attention leaves, $A^a = A\circ a$, or its symmetric part.

    Only $\frac12(A^a+A^{a\top})$ enters the loss and its gradient. Its degrees are in general not $p$.

    Args:
        A: graph, shape (N, N), symmetric.
        a: attention weights, shape (N, N), non-negative.
        symmetric: return the symmetric part; False for $A^a$ itself, with row sums $p$.

    Returns:
        Weights, shape (N, N), float64, of the total weight of $A$ when $a$ is from `attention_weights`.

    Raises:
        ValueError: if the shapes do not fit, $A$ is no graph, or a weight is negative.

    References:
        The companion's own; `prop-attention`.

    Examples:
        >>> attended_graph(torch.full((2, 2), 0.25), torch.tensor([[1.0, 1.0], [0.0, 2.0]])).tolist()
        [[0.25, 0.125], [0.125, 0.5]]
    """
    weighted = _attended(A, a, "attended_graph")
    return (weighted + weighted.T) / 2 if symmetric else weighted


def without_self_loops(A: Square) -> Square:
    r"""Remove the self-loops of a graph and scale what is left to the total weight before.

    Attention favours self-loops: remove them before crediting it with a larger $\gamma_2$. The result is in general not
    positive semidefinite.

    Args:
        A: graph, shape (N, N), symmetric.

    Returns:
        Weights with a zero diagonal, shape (N, N), float64.

    Raises:
        ValueError: if $A$ is no graph, or a vertex has no edge but its self-loop.

    References:
        The companion's own; `prop-attention`.

    Examples:
        >>> without_self_loops(torch.tensor([[0.25, 0.125], [0.125, 0.5]])).tolist()
        [[0.0, 0.5], [0.5, 0.0]]
    """
    A = adjacency(A, "without_self_loops")[0]
    others = A - torch.diag(A.diagonal())
    if not (rest := others.sum(1)).min() > 0:
        raise ValueError(f"without_self_loops: vertex {int(rest.argmin())} has only its self-loop; drop it first")
    return others * (A.sum() / others.sum())


def attentive_loss(U: Float[Tensor, "N k"], A: Square, a: Square, *, detach: bool = True) -> Float[Tensor, ""]:
    r"""Evaluate attentive alignment, $\frac12\sum_{x,x'}A_{xx'}a(x,x')\lVert f_x-f_{x'}\rVert^2$, keeping autograd.

    Args:
        U: raw features, shape (N, k).
        A: graph, shape (N, N), symmetric.
        a: attention weights, shape (N, N).
        detach: hold the weights fixed. False sends the gradient through them too, and it is no graph convolution.

    Returns:
        The loss, a scalar, float64.

    Raises:
        ValueError: if the shapes do not fit, $A$ is no graph, or a weight is negative.

    References:
        Wang et al. (2023), slides, attentive alignment; `def-attention`.

    Examples:
        >>> A = torch.full((2, 2), 0.25)
        >>> float(attentive_loss(torch.tensor([[0.0], [2.0]]), A, torch.ones(2, 2)))  # half of 4, half the mass
        1.0
    """
    U = _features(U, A, "attentive_loss")
    weighted = _attended(A, a.detach() if detach else a, "attentive_loss")
    messages = (weighted + weighted.T) / 2
    return (U * (messages.sum(1)[:, None] * U - messages @ U)).sum()


def attentive_gradient(U: Float[Tensor, "N k"], A: Square, a: Square) -> Float[Tensor, "N k"]:
    r"""Return the gradient of `attentive_loss` at fixed weights: a graph convolution on the attended graph.

    $$\nabla_U\mathcal L = 2\bigl(\mathrm{diag}(A^a_{\rm sym}\mathbf 1)-A^a_{\rm sym}\bigr)U,\qquad
    A^a_{\rm sym} = \tfrac12(A^a+A^{a\top}) .$$

    Args:
        U: raw features, shape (N, k).
        A: graph, shape (N, N), symmetric.
        a: attention weights, shape (N, N).

    Returns:
        The gradient, shape (N, k), float64.

    Raises:
        ValueError: if the shapes do not fit, $A$ is no graph, or a weight is negative.

    References:
        The companion's own; `prop-attention`.

    Examples:
        >>> A = torch.full((2, 2), 0.25)
        >>> attentive_gradient(torch.tensor([[0.0], [2.0]]), A, torch.ones(2, 2)).flatten().tolist()
        [-1.0, 1.0]
    """
    U = _features(U, A, "attentive_gradient")
    messages = attended_graph(A, a)
    return 2 * (messages.sum(1)[:, None] * U - messages @ U)


def batch_attention(h1: Float[Tensor, "B k"], h2: Float[Tensor, "B k"], beta: float = 1.0) -> Float[Tensor, " 2*B"]:
    r"""Return the weights of the released code: a softmax over all positive pairs of the batch, held fixed.

    $$w_i = e^{\beta(\cos(h_i,h_{i^+})+1)}\Big/\sum_{j=1}^{2B}e^{\beta(\cos(h_j,h_{j^+})+1)},\qquad i = 1,\dots,2B .$$

    The $+1$ cancels. With two views an anchor has one positive, so the weights compare anchors. Two of them differ by a
    factor of at most $e^{2\beta}$, and $e^\beta$ if $h\ge0$.

    Args:
        h1: features of the first views, shape (B, k), any float dtype; the released code takes the encoder's output
            before the projection head.
        h2: features of the second views, row $i$ the partner of row $i$ of `h1`.
        beta: inverse temperature; 1 in the released code, 0 gives equal weights.

    Returns:
        Weights, first views then second, shape (2B,), sum 1, the features' dtype, no gradient.

    Raises:
        ValueError: if the shapes do not fit, `beta` is negative, or (on a CPU) a row is zero.

    References:
        Wang et al. (2023), official code; `def-attention`.

    Examples:
        >>> h1, h2 = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, -3.0]])
        >>> w = batch_attention(h1, h2)  # cosines 1 and -1
        >>> round(float(w[0] / w[1]), 4), bool((w[:2] == w[2:]).all())
        (7.3891, True)
    """
    if h1.ndim != 2 or h1.shape != h2.shape or len(h1) < 1:
        raise ValueError(f"batch_attention: expected two (B, k) views, got {tuple(h1.shape)} and {tuple(h2.shape)}")
    if not 0 <= beta < torch.inf:
        raise ValueError(f"batch_attention: beta must be finite and not negative, got {beta}")
    u1, u2 = (functional.normalize(check_rows(h.detach(), "batch_attention"), dim=1) for h in (h1, h2))
    return torch.softmax(beta * (u1 * u2).sum(1), 0).repeat(2) / 2


def cross_share(epsilon: Scalar, delta: Scalar, beta: Scalar) -> Float[Tensor, "..."]:
    r"""Return what attention leaves of a view's edges to other classes.

    $$\epsilon' = \frac{\epsilon\,e^{-\beta\Delta}}{1-\epsilon+\epsilon\,e^{-\beta\Delta}},\qquad
    \mathrm{logit}\,\epsilon' = \mathrm{logit}\,\epsilon-\beta\Delta .$$

    Exact where all neighbours in the view's class have one similarity, and all others one smaller by $\Delta$.

    Args:
        epsilon: share $\epsilon$ of the view's edge weight that goes to other classes, in [0, 1]; broadcasts.
        delta: $\Delta$, of either sign; broadcasts.
        beta: inverse temperature $\beta\ge0$; broadcasts.

    Returns:
        $\epsilon'$, broadcast shape, float64.

    Raises:
        ValueError: if `epsilon` is not in [0, 1] or `beta` is negative.

    References:
        The companion's own; `prop-cross-share`.

    Examples:
        >>> log3 = 1.0986122886681098
        >>> round(float(cross_share(0.25, log3, 1.0)), 9), float(cross_share(0.25, log3, 0.0))  # (1/12) / (10/12)
        (0.1, 0.25)
    """
    epsilon, delta, beta = (torch.as_tensor(x, dtype=torch.float64) for x in (epsilon, delta, beta))
    if not ((epsilon >= 0) & (epsilon <= 1)).all():
        raise ValueError(f"cross_share: epsilon is a share, in [0, 1], got {epsilon.tolist()}")
    if not (beta >= 0).all():
        raise ValueError(f"cross_share: beta must not be negative, got {beta.tolist()}")
    return torch.sigmoid(torch.logit(epsilon) - beta * delta)


def _attended(A: Tensor, a: Tensor, name: str) -> Tensor:
    A = adjacency(A, name)[0]
    if a.shape != A.shape:
        raise ValueError(f"{name}: attention weights {tuple(a.shape)} must have the shape {tuple(A.shape)} of A")
    if not a.min() >= 0:
        raise ValueError(f"{name}: attention weights must not be negative, the smallest is {float(a.min()):g}")
    return A * a.double()


def _features(U: Tensor, A: Tensor, name: str) -> Tensor:
    if U.ndim != 2 or len(U) != len(A):
        raise ValueError(f"{name}: features {tuple(U.shape)} do not fit a graph {tuple(A.shape)}; need (N, k), (N, N)")
    return U.double()
