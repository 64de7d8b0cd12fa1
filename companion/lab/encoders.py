"""Encoders: a backbone whose output h is probed, and a projector whose output z = f(x) enters the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision import models

M = TypeVar("M", bound=nn.Module)


class Encoder(nn.Module):
    """x to h = backbone(x) to z = projector(h).

    The theory is about z, practice probes h. The paper's projection of z into the ball of radius sqrt(mu) belongs to
    the loss (`companion.theory.losses.clip_to_ball`), not to the encoder.

    Args:
        backbone: any module with output (n, d).
        projector: any module from (n, d) to (n, k).

    >>> encoder = mlp((4, 3, 2), generator=torch.Generator().manual_seed(0))
    >>> encoder.features(torch.zeros(5, 4)).shape, encoder(torch.zeros(5, 4)).shape
    (torch.Size([5, 3]), torch.Size([5, 2]))
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def features(self, x: Tensor) -> Float[Tensor, "n d"]:
        """The representation h that a probe reads."""
        return self.backbone(x)

    def forward(self, x: Tensor) -> Float[Tensor, "n k"]:
        """The embedding z = f(x) that the loss reads."""
        return self.projector(self.backbone(x))


def mlp(sizes: Sequence[int], *, generator: torch.Generator) -> Encoder:
    """A plain perceptron with ReLU and no batch norm, for the vertices of a graph: (784, 512, 512, 10).

    The last linear map is the projector, so that ``features`` are the last hidden layer. Images are flattened.

    Args:
        sizes: width of the input, of each hidden layer, and k.
        generator: source of the initial weights.

    Returns:
        The encoder.

    Raises:
        ValueError: fewer than three sizes.
    """
    if len(sizes) < 3:
        raise ValueError(f"sizes: expected input, at least one hidden layer, and k, found {tuple(sizes)}")

    def build() -> Encoder:
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(sizes[:-1]):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        return Encoder(nn.Sequential(*layers), nn.Linear(sizes[-2], sizes[-1]))

    return seeded(build, generator)


def small_cnn(
    channels: int = 1,
    feature_dim: int = 128,
    k: int = 64,
    *,
    size: int = 28,
    width: int = 16,
    hidden: Sequence[int] | None = (128,),
    generator: torch.Generator,
) -> Encoder:
    """Three convolutions of stride 2 (width, 2 width, 4 width) and a linear map to h, with batch norm and ReLU each.

    Each convolution halves the image: 28 to 14, 7, 4 pixels; 8 to 4, 2, 1 for the digits.

    Args:
        channels: of the images.
        feature_dim: d, width of h.
        k: width of z.
        size: side of the images in pixels.
        width: channels after the first convolution.
        hidden: widths of the projector's hidden layers; None: z is one linear map of h with bias, without batch norm.
        generator: source of the initial weights.

    Returns:
        The encoder.

    References:
        The companion's own, for its small experiments: 16, 32, 64 channels, d = 128.
    """

    def build() -> Encoder:
        widths = (channels, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Conv2d(width_in, width_out, 3, 2, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()]
        side = -(-size // 8)
        layers += [nn.Flatten(), nn.Linear(4 * width * side**2, feature_dim, bias=False)]
        layers += [nn.BatchNorm1d(feature_dim), nn.ReLU()]
        head = nn.Linear(feature_dim, k) if hidden is None else projector((feature_dim, *hidden, k))
        return Encoder(nn.Sequential(*layers), head)

    return seeded(build, generator)


def resnet(
    depth: int = 18,
    k: int = 1000,
    hidden: Sequence[int] = (2048,),
    stem: str = "cifar",
    *,
    channels: int = 3,
    generator: torch.Generator,
) -> Encoder:
    """The ResNet-18 or -50 of torchvision without its classifier, and a batch-norm projector; h is the average pool.

    Args:
        depth: 18 (d = 512) or 50 (d = 2048).
        k: width of z. The authors' CIFAR configuration is 512 to 2048 to 1000; for ImageNet 2048 to 8192 thrice.
        hidden: widths of the projector's hidden layers.
        stem: "cifar" (3 x 3 convolution of stride 1, no max pooling) or "imagenet" (torchvision's own).
        channels: of the images.
        generator: source of the initial weights.

    Returns:
        The encoder.

    Raises:
        ValueError: another depth or stem.

    References:
        HaoChen et al. 2021, section 6 and the authors' published configuration.
    """
    builders = {18: models.resnet18, 50: models.resnet50}
    if depth not in builders or stem not in ("cifar", "imagenet"):
        raise ValueError(f'expected depth 18 or 50 and stem "cifar" or "imagenet", found {depth} and {stem!r}')

    def build() -> Encoder:
        backbone = builders[depth](weights=None)
        d = backbone.fc.in_features
        backbone.fc = nn.Identity()  # type: ignore[assignment]
        if stem == "cifar":
            backbone.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
            backbone.maxpool = nn.Identity()  # type: ignore[assignment]
        elif channels != 3:
            backbone.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        return Encoder(backbone, projector((d, *hidden, k)))

    return seeded(build, generator)


def projector(sizes: Sequence[int]) -> nn.Sequential:
    """The paper's projection head: batch norm on every layer, ReLU on all but the last."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(sizes):
        layers += [nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def seeded(build: Callable[[], M], generator: torch.Generator) -> M:
    """Call `build` with weights drawn from `generator`, leaving the CPU's global random state as it was."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
