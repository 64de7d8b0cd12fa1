r"""Two visual domains made of one set of images, the augmentations that connect them, and a head carried across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from companion.lab.data import ImageSet
from companion.lab.graphs import neighbour_law
from companion.lab.probe import few_labels


@dataclass(frozen=True)
class Views:
    """Images of several classes in two domains.

    Attributes:
        points: (N, d) float32 in [0, 1], one row an image.
        label: (N,) int64, 0, 1, ... in the order of the classes asked for.
        domain: (N,) int64, 0 for the images as they are, 1 for the other domain.
    """

    points: Float[Tensor, "N d"]
    label: Int64[Tensor, " N"]
    domain: Int64[Tensor, " N"]


def two_domains(images: ImageSet, classes: Sequence[int], per_block: int, generator: torch.Generator) -> Views:
    """Draw images of some classes and show half of them in another domain: transposed, as a negative.

    No image is in both domains; nothing but the augmentations of `crossing_law` connects them.

    Args:
        images: square images with labels.
        classes: the labels to use.
        per_block: images a class and domain.
        generator: source of the choice.

    Returns:
        The images, class by class, the two domains of a class one after the other.

    Raises:
        ValueError: a class has too few images.
    """
    wanted = torch.full_like(images.labels, -1)
    for number, label in enumerate(classes):
        found = int((images.labels == label).sum())
        if found < 2 * per_block:
            raise ValueError(f"two_domains: class {label}: expected at least {2 * per_block} images, found {found}")
        wanted[images.labels == label] = number
    index = few_labels(wanted, 2 * per_block, generator)
    pictures = images.subset(index).float()
    domain = torch.arange(2).repeat_interleave(per_block).repeat(len(classes))
    other = (domain == 1)[:, None, None, None]
    points = torch.where(other, 1 - pictures.transpose(2, 3), pictures).flatten(1)
    return Views(points, wanted[index], domain)


def crossing_law(
    views: Views,
    same_class: float,
    *,
    neighbour: float = 0.5,
    neighbours: int = 15,
    within: float = 0.7,
    across_classes: float = 0.1,
) -> Float[Tensor, "N N"]:
    r"""An augmentation law on images of several classes in two domains, with the domain crossing as a knob.

    With probability `neighbour` a view is one of the nearest neighbours in the same domain (`neighbour_law`). Otherwise
    it is a random image of the same block (`within`), of another class in the same domain (`across_classes`), or of the
    other domain, and then of the same class with probability `same_class`.

    Args:
        views: the images.
        same_class: the knob, in [0, 1].
        neighbour: share of nearest-neighbour views.
        neighbours: how many neighbours.
        within: share of the block itself among the other views.
        across_classes: share of other classes in the same domain.

    Returns:
        $K$, dense (N, N) float64, rows sum to one.
    """
    n = len(views.label)
    K = torch.zeros(n, n, dtype=torch.float64)
    for d in (0, 1):
        (members,) = torch.nonzero(views.domain == d, as_tuple=True)
        near = neighbour_law(views.points[members], neighbours).toarray()
        K[members[:, None], members] = neighbour * torch.from_numpy(near)
    here, alike = views.domain[:, None] == views.domain, views.label[:, None] == views.label
    crossing = 1 - within - across_classes
    for share, block in (
        (within, here & alike),
        (across_classes, here & ~alike),
        (crossing * same_class, ~here & alike),
        (crossing * (1 - same_class), ~here & ~alike),
    ):
        K += (1 - neighbour) * share * block.double() / block.sum(1, keepdim=True)
    return K


@dataclass(frozen=True)
class Carried:
    """How a source head does on the target, and how far the domains are apart.

    Attributes:
        source: accuracy on the source domain, in [0, 1].
        target: accuracy on the target domain.
        domain: accuracy of a least-squares probe for the domain.
        distance: distance of the domains' mean features over the mean length of a feature.
    """

    source: float
    target: float
    domain: float
    distance: float


def carry_head(
    U: Float[Tensor, "N k"],
    label: Int64[Tensor, " N"],
    domain: Int64[Tensor, " N"],
    held_out: tuple[Float[Tensor, "M k"], Int64[Tensor, " M"], Int64[Tensor, " M"]] | None = None,
    penalty: float = 1e-3,
) -> Carried:
    r"""Fit a nearly least-norm head to the source labels and use it on the target.

    $B=(U_S^\top U_S+n_S\lambda I)^{-1}U_S^\top(Y_S-\frac1r)$ with one-hot labels $Y_S$, without intercept;
    predict $\arg\max_c$.

    Args:
        U: features, one row a view; float64 inside.
        label: classes 0, ..., r - 1.
        domain: 0 for the source, 1 for the target.
        held_out: features, labels and domains on which to count instead of on the same views.
        penalty: $\lambda$.

    Returns:
        Accuracies and distance.

    References:
        `thm-blocks`.

    >>> U = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])  # class on one axis, domain on the other
    >>> found = carry_head(U, torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]))
    >>> found.source, found.target, found.domain, round(found.distance, 6)
    (1.0, 1.0, 1.0, 1.414214)
    """
    U = U.double()
    V, truth, where = (U, label, domain) if held_out is None else (held_out[0].double(), held_out[1], held_out[2])

    def head(X: Tensor, targets: Tensor) -> Tensor:
        eye = torch.eye(X.shape[1], dtype=X.dtype)
        return torch.linalg.solve(X.T @ X + len(X) * penalty * eye, X.T @ targets)

    source = domain == 0
    Y = torch.nn.functional.one_hot(label).double()
    right = (V @ head(U[source], (Y - 1 / Y.shape[1])[source])).argmax(1) == truth
    sign = (V @ head(U, 2 * domain.double() - 1)) > 0
    means = [V[where == d].mean(0) for d in (0, 1)]
    return Carried(
        float(right[where == 0].double().mean()),
        float(right[where == 1].double().mean()),
        float((sign == (where == 1)).double().mean()),
        float((means[0] - means[1]).norm() / V.norm(dim=1).mean()),
    )
