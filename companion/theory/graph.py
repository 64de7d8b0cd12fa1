r"""The positive-pair graph: vertices are views, an edge weighs the chance that two views share an image.

An image $\bar x$ is drawn with probability $\pi_{\bar x}$ and two views are drawn independently from row
$\bar x$ of the augmentation law $K$. The pair is $(x, x')$ with probability $A_{xx'}$,

$$A = K^\top \mathrm{diag}(\pi)\,K,\quad p = A\mathbf 1,\quad D = \mathrm{diag}(p),\quad \bar A = D^{-1/2} A D^{-1/2}.$$

$\bar A$ is positive semidefinite, $\gamma_1 = 1$ with eigenvector $\sqrt p$, and the Laplacian $L = I - \bar A$ has
$u^\top L u = \tfrac12\sum_{x,x'} A_{xx'}(h_x - h_{x'})^2$ for $u = D^{1/2}h$.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from companion.theory import weights
from companion.theory.blocks import BlockSpectrum, block_spectrum, block_weights
from companion.theory.solvers import Eigenpairs, Method, dense_eigenpairs, sparse_eigenpairs

__all__ = ["BlockSpectrum", "Eigenpairs", "PositivePairGraph", "block_spectrum"]


@dataclass(frozen=True, eq=False, repr=False)
class PositivePairGraph:
    r"""A weighted graph of total weight one; build it with one of the `from_...` constructors or `blocks`.

    Attributes:
        degree: $p$, shape (N,), float64, positive, sums to 1.
        factor: $B = \Pi^{1/2} K D^{-1/2}$ with $\bar A = B^\top B$, where the graph came from a sparse $K$.

    Examples:
        Two images; the middle view is shared.

        >>> graph = PositivePairGraph.from_augmentation([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
        >>> graph.degree.tolist()
        [0.25, 0.5, 0.25]
        >>> [round(gamma, 6) + 0.0 for gamma in graph.eigenpairs(3).values.tolist()]
        [1.0, 0.5, 0.0]
    """

    degree: Float[Tensor, " N"]
    factor: csr_array | None = None
    _adjacency: weights.Matrix | None = None
    _solved: dict[tuple[int, float, Method], Eigenpairs] = field(default_factory=dict)

    @classmethod
    def from_adjacency(cls, adjacency: Any, *, allow_disconnected: bool = False) -> "PositivePairGraph":
        r"""Take any symmetric non-negative weights and scale them to total one.

        Args:
            adjacency: shape (N, N); tensor or array (stored dense), or scipy sparse (stored sparse).
            allow_disconnected: accept more than one component ($\gamma_2 = 1$).

        Returns:
            The graph. $\bar A$ need not be positive semidefinite here.

        Raises:
            ValueError: if the weights are not square, finite, symmetric and non-negative, a vertex has no edge,
                or the graph is disconnected.

        Examples:
            >>> PositivePairGraph.from_adjacency([[2.0, 1.0], [1.0, 4.0]]).adjacency.tolist()
            [[0.25, 0.125], [0.125, 0.5]]
        """
        A = weights.checked_symmetric(adjacency)
        return cls(weights.checked_degree(A.sum(1), "adjacency"), _adjacency=A)._connected(allow_disconnected)

    @classmethod
    def from_augmentation(cls, K: Any, prior: Any = None, *, allow_disconnected: bool = False) -> "PositivePairGraph":
        r"""Build $A = K^\top \mathrm{diag}(\pi) K$ from the augmentation law.

        Args:
            K: shape (Nbar, N), rows sum to 1; dense, or scipy sparse (then only the factor $B$ is stored).
            prior: $\pi$, shape (Nbar,), sums to 1; uniform when None.
            allow_disconnected: accept more than one component.

        Returns:
            The graph; $\bar A$ is positive semidefinite.

        Raises:
            ValueError: if $K$ or $\pi$ is no probability law, a view is never produced, or the graph is disconnected.

        References:
            HaoChen et al. (2021), section 3; `def-positive-pair-graph`.
        """
        K, prior = weights.checked_law(K, prior)
        degree = weights.checked_degree(weights.times(K.T, prior), "K")
        if isinstance(K, Tensor):
            graph = cls(degree, _adjacency=K.T @ (prior[:, None] * K))
        else:
            graph = cls(degree, factor=weights.scaled(prior.sqrt(), K, degree.rsqrt()))
        return graph._connected(allow_disconnected)

    @classmethod
    def from_pairs(cls, i: Any, j: Any, n: int, *, allow_disconnected: bool = False) -> "PositivePairGraph":
        r"""Count observed pairs: each of the $M$ pairs $(i, j)$ adds $1/2M$ to $A_{ij}$ and to $A_{ji}$.

        Args:
            i: first members, shape (M,), integers in [0, n).
            j: second members, shape (M,).
            n: number of vertices $N$.
            allow_disconnected: accept more than one component.

        Returns:
            A sparse graph.

        Raises:
            ValueError: if an index is out of range, a vertex is in no pair, or the graph is disconnected.

        Examples:
            >>> PositivePairGraph.from_pairs([0, 1], [1, 1], 2).adjacency.toarray().tolist()
            [[0.0, 0.25], [0.25, 0.5]]
        """
        return cls.from_adjacency(weights.pair_counts(i, j, n), allow_disconnected=allow_disconnected)

    @classmethod
    def blocks(
        cls,
        classes: int,
        domains: int,
        within: float,
        across_domains: float,
        across_classes: float,
        across_both: float,
        size: int = 1,
        *,
        allow_disconnected: bool = False,
    ) -> "PositivePairGraph":
        r"""Lay out the class × domain block graph, vertex `(class * domains + domain) * size + i`.

        Args:
            classes: number of classes $r$.
            domains: number of domains $m$.
            within: weight in a block, self-loops included; the other three are named by what differs.
            across_domains: same class, other domain.
            across_classes: other class, same domain.
            across_both: both differ.
            size: vertices a block.
            allow_disconnected: accept more than one component.

        Returns:
            A dense graph whose spectrum `block_spectrum` gives in closed form.

        References:
            Shen et al. (2022), Figure 2 (r = m = 2); `thm-blocks`.
        """
        A = block_weights(classes, domains, within, across_domains, across_classes, across_both, size)
        return cls.from_adjacency(A, allow_disconnected=allow_disconnected)

    @property
    def n(self) -> int:
        """Number of vertices $N$."""
        return len(self.degree)

    @property
    def is_sparse(self) -> bool:
        """Whether matrices are scipy sparse arrays."""
        return not isinstance(self._adjacency, Tensor)

    @cached_property
    def adjacency(self) -> weights.Matrix:
        r"""$A$, shape (N, N), float64: dense tensor, or `csr_array` (computed on demand from a factor)."""
        root = self.degree.sqrt()
        return weights.scaled(root, self.normalized, root) if self._adjacency is None else self._adjacency

    @cached_property
    def normalized(self) -> weights.Matrix:
        r"""$\bar A = D^{-1/2} A D^{-1/2}$ in the storage of `adjacency`."""
        if self.factor is not None:
            return csr_array(self.factor.T @ self.factor)
        return weights.scaled(self.degree.rsqrt(), self._adjacency, self.degree.rsqrt())

    @cached_property
    def component_count(self) -> int:
        """Number of connected components."""
        return weights.components(self._adjacency, self.factor)

    def multiply(self, X: Float[Tensor, "N c"]) -> Float[Tensor, "N c"]:
        r"""Apply $\bar A$ to the columns of $X$, without forming it where a factor is known."""
        B = self.factor
        return weights.times(self.normalized, X) if B is None else weights.times(B.T, weights.times(B, X))

    def eigenpairs(self, k: int, tolerance: float = 1e-10, method: Method = "auto") -> Eigenpairs:
        r"""Find the $k$ largest eigenvalues of $\bar A$; deterministic, and remembered for the next call.

        Args:
            k: number of pairs, $1 \le k \le N$.
            tolerance: largest accepted residual of an iterative solver.
            method: "auto", or one of "dense", "arpack", "lobpcg" (the last two for sparse graphs only).

        Returns:
            `Eigenpairs(values, vectors, residuals)`, decreasing.

        Raises:
            ValueError: if $k$ is out of range or the tolerance cannot be reached.
        """
        if not 1 <= k <= self.n:
            raise ValueError(f"eigenpairs: k must lie in 1..{self.n} (the number of vertices), got {k}")
        if not self.is_sparse and method not in ("auto", "dense"):
            raise ValueError(f"eigenpairs: method {method!r} is for sparse graphs; this one is dense, use 'dense'")
        key = (k, tolerance, method)
        if key not in self._solved:
            self._solved[key] = self._solve(*key)
        return self._solved[key]

    def _solve(self, k: int, tolerance: float, method: Method) -> Eigenpairs:
        if isinstance(self._adjacency, Tensor):
            return dense_eigenpairs(weights.scaled(self.degree.rsqrt(), self._adjacency, self.degree.rsqrt()), k)
        B = self.factor
        factors = (csr_array(self.normalized),) if B is None else (csr_array(B.T), B)
        return sparse_eigenpairs(factors, lambda: csr_array(self.normalized), self.degree.sqrt(), k, tolerance, method)

    def cross_edge_weight(self, labels: Int[Tensor, " N"]) -> float:
        r"""Weigh the edges between different labels, $\phi = \Pr[\hat y(x) \ne \hat y(x^+)]$.

        Args:
            labels: $\hat y$, shape (N,), integers from 0.

        Returns:
            $\phi\in[0, 1]$; exactly 0 when no edge joins two labels.

        Raises:
            ValueError: if the labels do not fit the vertices.

        References:
            HaoChen et al. (2021), proof of Theorem 3.7 (3.8 in later versions); `eq-phi`.

        Examples:
            >>> PositivePairGraph.from_adjacency([[3.0, 1.0], [1.0, 3.0]]).cross_edge_weight(torch.tensor([0, 1]))
            0.25
        """
        return float(self._between(labels).fill_diagonal_(0).sum())

    def conductance(self, mask: Bool[Tensor, " N"]) -> float:
        r"""Compute $w(S, S^c)/w(S)$: the chance that the positive partner of a view in $S$ lies outside.

        Args:
            mask: membership of $S$, shape (N,), bool, not empty.

        Returns:
            A number in [0, 1].

        Raises:
            ValueError: if $S$ is empty or the mask does not fit.

        References:
            HaoChen et al. (2021), Definition 3.3; `prop-sparse-partition`.

        Examples:
            >>> graph = PositivePairGraph.from_adjacency([[2.0, 1.0], [1.0, 4.0]])
            >>> round(graph.conductance(torch.tensor([True, False])), 4)
            0.3333
        """
        mask = torch.as_tensor(mask, dtype=torch.bool)
        if not mask.any():
            raise ValueError("conductance: the set is empty; mask needs at least one True")
        between = self._between((~mask).long())  # class 0 is S
        return float(between[0, 1:].sum() / between[0].sum())

    def quadratic_form(self, h: Float[Tensor, "N *c"]) -> float:
        r"""Compute $\tfrac12\sum_{x,x'}A_{xx'}\lVert h_x - h_{x'}\rVert^2 = \mathrm{tr}(h^\top(D - A)\,h)$.

        Args:
            h: one value or one row a vertex, shape (N,) or (N, c), float64.

        Returns:
            The form; 0, to rounding, when $h$ is constant on every component.

        Examples:
            >>> PositivePairGraph.from_adjacency([[3.0, 1.0], [1.0, 3.0]]).quadratic_form(torch.tensor([0.0, 2.0]))
            0.5
        """
        h = torch.as_tensor(h, dtype=torch.float64).reshape(self.n, -1)
        h = h - self.degree @ h  # a constant adds nothing; removing it saves digits
        return float((h * (self.degree[:, None] * h - self._join(h))).sum())

    def _join(self, h: Tensor) -> Tensor:
        """Apply $A$ to columns, through the factor where there is one."""
        if self._adjacency is not None:
            return weights.times(self._adjacency, h)
        root = self.degree.sqrt()[:, None]
        return root * self.multiply(root * h)

    def _between(self, labels: Tensor) -> Tensor:
        """Weights between label classes, shape (r, r): sums of non-negative terms, so zeros stay zeros."""
        S = weights.one_hot(labels, self.n)
        return S.T @ self._join(S)

    def _connected(self, allow_disconnected: bool) -> "PositivePairGraph":
        if not allow_disconnected and self.component_count > 1:
            count = self.component_count
            raise ValueError(f"graph: {count} connected components; link them, or pass allow_disconnected=True")
        return self
