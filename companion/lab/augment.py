"""Random augmentations of a whole batch at once, every image with its own draw: the law K(x | image) of the theory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from companion.lab import pixels

ATTEMPTS = 10  # draws of a crop before the centre is taken, as in torchvision
CHANGES = {"saturation": pixels.adjust_saturation, "hue": pixels.adjust_hue}


@dataclass(frozen=True)
class Augmentation:
    """A chain of random changes: crop, flip, colour jitter, grey, blur, noise; then normalisation.

    The defaults change nothing. Meaning and distribution of each part are those of torchvision.transforms.v2, which
    gives all images of a batch the same draw; this class gives each its own.

    Attributes:
        area: smallest and largest share of the image's area that a crop keeps; None: no crop.
        aspect: smallest and largest width / height of a crop, log-uniform.
        flip: probability of a mirror image.
        brightness: factor uniform in [max(0, 1 - b), 1 + b].
        contrast: the same for contrast.
        saturation: the same for saturation (colour images only).
        hue: shift uniform in [-h, h], in turns of the colour circle (colour images only).
        jitter: probability that brightness, contrast, saturation and hue are changed, in random order.
        grey: probability that a colour image loses its colour.
        blur: smallest and largest standard deviation of a Gaussian blur, in pixels; None: no blur.
        blurred: probability of the blur.
        noise: standard deviation of additive Gaussian noise, with pixels in [0, 1].
        mean: subtracted from each channel at the end, with pixels in [0, 1].
        std: divides each channel at the end.

    >>> images = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    >>> flipped = Augmentation(flip=1.0)(images, torch.Generator().manual_seed(0))
    >>> (255 * flipped[0, 0, 0]).round()
    tensor([3., 2., 1., 0.])
    """

    area: tuple[float, float] | None = None
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 1.0
    grey: float = 0.0
    blur: tuple[float, float] | None = None
    blurred: float = 1.0
    noise: float = 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(
        self, images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"], generator: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        """One random view of each image.

        Args:
            images: uint8, or float with pixels in [0, 1]; one or three channels.
            generator: source of all draws, on the device of the images.

        Returns:
            The views, float32.

        Raises:
            ValueError: the images are not four-dimensional, or do not have one or three channels.
        """
        x = _as_float(images)
        mirrored = _uniform(len(x), x, generator) < self.flip
        if self.area is not None:
            x = pixels.resized_crop(x, *random_crops(x, self.area, self.aspect, generator), mirrored)
        elif self.flip:
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        x = self._jittered(x, generator)
        if self.grey and x.shape[1] == 3:
            chosen = _uniform(len(x), x, generator) < self.grey
            x = torch.where(chosen[:, None, None, None], pixels.luma(x), x)
        if self.blur is not None:
            chosen = torch.nonzero(_uniform(len(x), x, generator) < self.blurred).squeeze(1)
            low, high = self.blur
            sigma = low + (high - low) * _uniform(len(chosen), x, generator)
            x = x.index_copy(0, chosen, pixels.gaussian_blur(x[chosen], sigma))
        if self.noise:
            x.add_(torch.randn(x.shape, generator=generator, device=x.device), alpha=self.noise)
        return self._normalised(x)

    def clean(self, images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The images without any random change, normalised as the views are: what a probe is shown."""
        return self._normalised(_as_float(images))

    def _normalised(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x - mean).div_(std)

    def _jittered(self, x: Tensor, generator: torch.Generator) -> Tensor:
        spreads = {"brightness": self.brightness, "contrast": self.contrast}
        if x.shape[1] == 3:
            spreads |= {"saturation": self.saturation, "hue": self.hue}
        steps = [name for name, spread in spreads.items() if spread]
        if not steps:
            return x
        n = len(x)
        chosen = _uniform(n, x, generator) < self.jitter
        amounts = torch.stack([_amount(name, spreads[name], _uniform(n, x, generator)) for name in steps], 1)
        order = torch.rand(n, len(steps), generator=generator, device=x.device).argsort(1)  # (n, turns)
        blends = [name for name in steps if name in ("brightness", "contrast")]  # the first of the steps
        factors = torch.where(chosen[:, None] & (order < len(blends)), amounts.gather(1, order), 1.0)
        contrast = order == (steps.index("contrast") if "contrast" in steps else -1)
        for turn in range(len(steps)):
            if blends:
                pixels.brightness_or_contrast_(x, factors[:, turn], contrast[:, turn])
            for number, name in enumerate(steps[len(blends) :], len(blends)):
                now = torch.nonzero(chosen & (order[:, turn] == number)).squeeze(1)
                x[now] = CHANGES[name](x[now], amounts[now, number])
        return x


def fashion() -> Augmentation:
    """For Fashion-MNIST (28 x 28, grey): crop of area .2 to 1, flip, brightness .4, contrast .4, noise .05.

    Brightness and contrast change with probability .8; mean .286 and standard deviation .353 are those of the training
    images.
    """
    return Augmentation(
        area=(0.2, 1.0), flip=0.5, brightness=0.4, contrast=0.4, jitter=0.8, noise=0.05, mean=(0.286,), std=(0.353,)
    )


def digits() -> Augmentation:
    """For scikit-learn's digits (8 x 8, grey): crop of area .5 to 1, brightness .2, noise .1; no flip (2 is no 5)."""
    return Augmentation(area=(0.5, 1.0), brightness=0.2, noise=0.1, mean=(0.305,), std=(0.376,))


def cifar(size: int = 32) -> Augmentation:
    """The authors' augmentation: crop of area .2 to 1, flip .5, jitter (.4, .4, .4, .1) with p .8, grey with p .2.

    Gaussian blur of standard deviation .1 to 2 with p .5 only for images larger than 32 pixels; mean and standard
    deviation of ImageNet.

    Args:
        size: side of the images in pixels.

    Returns:
        The augmentation.

    References:
        HaoChen et al. 2021, section 6 and the authors' published configuration.
    """
    return Augmentation(
        area=(0.2, 1.0),
        flip=0.5,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        jitter=0.8,
        grey=0.2,
        blur=(0.1, 2.0) if size > 32 else None,
        blurred=0.5,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def random_crops(
    x: Float[Tensor, "n c h w"],
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw one crop an image: share of the area uniform, aspect ratio log-uniform, position uniform.

    As in torchvision the first of ten draws that fits into the image counts; if none fits, it is the largest centred
    crop with an allowed aspect ratio.

    Args:
        x: the images; only their shape and device matter.
        area: smallest and largest share of the area.
        aspect: smallest and largest width / height.
        generator: source of the draws.

    Returns:
        (top, left, height, width), (n,) int64 each, in pixels.
    """
    n, _, h, w = x.shape
    cut = h * w * (area[0] + (area[1] - area[0]) * torch.rand(n, ATTEMPTS, generator=generator, device=x.device))
    low, high = torch.tensor(aspect, device=x.device).log()
    ratio = (low + (high - low) * torch.rand(n, ATTEMPTS, generator=generator, device=x.device)).exp()
    widths, heights = (cut * ratio).sqrt_().round_(), (cut / ratio).sqrt_().round_()
    fits = (widths > 0) & (widths <= w) & (heights > 0) & (heights <= h)
    first = fits.int().argmax(1, keepdim=True)  # the first True; 0 if there is none
    found = fits.any(1)
    whole = (min(h, round(w / aspect[0])), min(w, round(h * aspect[1])))
    height = torch.where(found, heights.gather(1, first).squeeze(1).long(), whole[0])
    width = torch.where(found, widths.gather(1, first).squeeze(1).long(), whole[1])
    top = (_uniform(n, x, generator) * (h - height + 1)).long()
    left = (_uniform(n, x, generator) * (w - width + 1)).long()
    top, left = torch.where(found, top, (h - height) // 2), torch.where(found, left, (w - width) // 2)
    return top, left, height, width


def _uniform(n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, device=like.device)


def _amount(name: str, spread: float, uniform: Tensor) -> Tensor:
    low, high = (-spread, spread) if name == "hue" else (max(0.0, 1 - spread), 1 + spread)
    return low + (high - low) * uniform


def _as_float(images: Tensor) -> Tensor:
    """The pixels in [0, 1], in memory of their own: the chain works in place."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images: expected shape (n, 1 or 3, h, w), found {tuple(images.shape)}")
    return images.float().div_(255) if images.dtype == torch.uint8 else images.to(torch.float32, copy=True)
