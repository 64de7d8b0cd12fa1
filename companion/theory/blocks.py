r"""The class × domain block graph: its weights and its spectrum in closed form."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def block_weights(
    classes: int,
    domains: int,
    within: float,
    across_domains: float,
    across_classes: float,
    across_both: float,
    size: int = 1,
) -> Float[Tensor, "N N"]:
    r"""Lay out block weights before normalisation, vertex `(class * domains + domain) * size + i`.

    Args:
        classes: number of classes $r$.
        domains: number of domains $m$.
        within: weight between vertices of the same class and domain, self-loops included.
        across_domains: same class, other domain.
        across_classes: other class, same domain.
        across_both: both differ.
        size: vertices a block.

    Returns:
        Shape (N, N), float64, $N$ = classes * domains * size.

    Examples:
        >>> block_weights(1, 2, within=2.0, across_domains=1.0, across_classes=0.0, across_both=0.0).tolist()
        [[2.0, 1.0], [1.0, 2.0]]
    """
    c = torch.arange(classes).repeat_interleave(domains * size)
    d = torch.arange(domains).repeat_interleave(size).repeat(classes)
    table = torch.tensor([[across_both, across_classes], [across_domains, within]], dtype=torch.float64)
    return table[(c[:, None] == c).long(), (d[:, None] == d).long()]


@dataclass(frozen=True)
class BlockSpectrum:
    r"""The four eigenvalues of a class × domain block graph, each with its multiplicity.

    Attributes:
        one: constant vector, $\gamma = 1$.
        class_: differences between classes, multiplicity $r - 1$.
        domain: differences between domains, multiplicity $m - 1$.
        interaction: class × domain contrasts, multiplicity $(r - 1)(m - 1)$.
    """

    one: tuple[float, int]
    class_: tuple[float, int]
    domain: tuple[float, int]
    interaction: tuple[float, int]

    def values(self) -> Float[Tensor, " rm"]:
        """All eigenvalues with multiplicity, decreasing, shape (r * m,), float64."""
        groups = (self.one, self.class_, self.domain, self.interaction)
        values = [value for value, count in groups for _ in range(count)]
        return torch.tensor(values, dtype=torch.float64).sort(descending=True)[0]


def block_spectrum(
    classes: int, domains: int, within: float, across_domains: float, across_classes: float, across_both: float
) -> BlockSpectrum:
    r"""Give the non-zero spectrum of `PositivePairGraph.blocks` in closed form.

    With weights $\rho$ (within), $\alpha$ (across domains), $\beta$ (across classes), $\gamma$ (across both) and
    $Z = \rho + (m-1)\alpha + (r-1)\beta + (r-1)(m-1)\gamma$,

    $$Z\lambda_{\rm cls} = \rho - \beta + (m-1)(\alpha-\gamma),\quad
    Z\lambda_{\rm dom} = \rho - \alpha + (r-1)(\beta-\gamma),\quad
    Z\lambda_{\rm int} = \rho - \alpha - \beta + \gamma .$$

    Args:
        classes: $r$.
        domains: $m$.
        within: $\rho$.
        across_domains: $\alpha$.
        across_classes: $\beta$.
        across_both: $\gamma$.

    Returns:
        Eigenvalues of $\bar A$ with multiplicities; blocks of several vertices add zeros only.

    References:
        The setting is Shen et al. (2022), Figure 2; the spectrum is the companion's, `thm-blocks`.

    Examples:
        >>> spectrum = block_spectrum(2, 2, within=0.40, across_domains=0.10, across_classes=0.15, across_both=0.03)
        >>> [round(v, 3) for v, _ in (spectrum.class_, spectrum.domain, spectrum.interaction)]
        [0.471, 0.618, 0.265]
    """
    r, m = classes, domains
    a, b = across_domains - across_both, across_classes - across_both
    interaction = within - across_domains - across_classes + across_both
    Z = within + (m - 1) * across_domains + (r - 1) * across_classes + (r - 1) * (m - 1) * across_both
    return BlockSpectrum(
        one=(1.0, 1),
        class_=((interaction + m * a) / Z, r - 1),
        domain=((interaction + r * b) / Z, m - 1),
        interaction=(interaction / Z, (r - 1) * (m - 1)),
    )
