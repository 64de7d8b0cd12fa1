"""Batched operations on pixels, each image with its own parameter; values as in torchvision.transforms.v2."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)  # weights of red, green and blue in the luma of ITU-R BT.601, as torchvision has them


def resized_crop(
    x: Float[Tensor, "n c h w"], top: Tensor, left: Tensor, height: Tensor, width: Tensor, mirrored: Tensor
) -> Float[Tensor, "n c h w"]:
    r"""Cut one rectangle out of each image and resize it to the whole: $x_i \mapsto R_i x_i C_i^\top$.

    Bilinear resizing acts on rows and columns alone, so two batched products with n small matrices do it, and a mirror
    image is the matrix $C_i$ upside down (`benchmarks/RECORDS.md`, augment).

    Args:
        x: the images.
        top, left, height, width: (n,) rectangles in pixels.
        mirrored: (n,) bool, left and right exchanged.

    Returns:
        Images of the same size.
    """
    n, c, h, w = x.shape
    R, C = resize_matrix(top, height, h), resize_matrix(left, width, w, mirrored)
    columns = x.reshape(n, c * h, w) @ C.mT  # all channels in one product
    return R[:, None] @ columns.view(n, c, h, w)


def resize_matrix(
    start: Int64[Tensor, " n"], length: Int64[Tensor, " n"], size: int, mirrored: Bool[Tensor, " n"] | None = None
) -> Float[Tensor, "n size size"]:
    """Matrices that stretch the pixels start ... start + length - 1 of a line to the whole line, bilinearly.

    Output pixel o looks at the place (o + 1/2) length / size - 1/2 of the cut; the weights are a triangle of width one
    pixel, normalised, which at the ends repeats the last pixel.

    Args:
        start: first pixel of each cut.
        length: its number of pixels.
        size: of the line.
        mirrored: which lines are turned round afterwards.

    Returns:
        The matrices, float32, from pixels to output pixels.

    >>> resize_matrix(torch.tensor([1]), torch.tensor([2]), 4)[0]
    tensor([[0.0000, 1.0000, 0.0000, 0.0000],
            [0.0000, 0.7500, 0.2500, 0.0000],
            [0.0000, 0.2500, 0.7500, 0.0000],
            [0.0000, 0.0000, 1.0000, 0.0000]])
    """
    pixel = torch.arange(size, device=start.device, dtype=torch.float32)
    centre = ((pixel + 0.5) * (length[:, None] / size)).sub_(0.5).clamp_min_(0)  # (n, size)
    centre = torch.minimum(centre, length[:, None] - 1.0) + start[:, None]
    if mirrored is not None:
        centre = torch.where(mirrored[:, None], centre.flip(1), centre)
    # in place, since n size^2 numbers are the cost: 1 - |distance|, and no less than 0
    return (centre[:, :, None] - pixel).abs_().neg_().add_(1).clamp_min_(0)


def gaussian_blur(x: Float[Tensor, "n c h w"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Blur each image with its own standard deviation in pixels; reflected border, kernel of radius 3 max sigma."""
    reach = int(torch.ceil(3 * sigma.max())) if len(sigma) else 0
    rows, columns = (_blur_matrix(sigma, size, min(reach, size - 1)) for size in x.shape[2:])
    return rows[:, None] @ x @ columns.mT[:, None]


def _blur_matrix(sigma: Tensor, size: int, radius: int) -> Float[Tensor, "n size size"]:
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    weight = torch.softmax(-0.5 * (offset / sigma[:, None]) ** 2, 1)  # (n, 2 radius + 1)
    source = (torch.arange(size, device=sigma.device)[:, None] + offset).abs()
    source = torch.where(source < size, source, 2 * (size - 1) - source)  # (size, 2 radius + 1)
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device)
    return matrix.scatter_add_(2, source.expand(len(sigma), -1, -1), weight[:, None].expand(-1, size, -1))


def luma(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """The grey picture of a colour picture; a grey one is returned as it is."""
    return torch.einsum("nchw,c->nhw", x, torch.tensor(GREY, device=x.device)).unsqueeze(1) if x.shape[1] == 3 else x


def brightness_or_contrast_(
    x: Float[Tensor, "n c h w"], factor: Float[Tensor, " n"], contrast: Bool[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Adjust, in place, the contrast of some images and the brightness of the others, in one pass over all.

    Both blend an image with one number a, its mean grey or black: clamp(factor x + (1 - factor) a). A factor of 1
    changes nothing.

    Args:
        x: the images, which are overwritten.
        factor: of each image.
        contrast: where a is the mean grey; elsewhere it is 0.

    Returns:
        x.
    """
    mean = x.flatten(2).mean(2)  # (n, c)
    if x.shape[1] == 3:
        mean = mean @ torch.tensor(GREY, device=x.device)[:, None]
    towards = (1 - factor) * mean[:, 0] * contrast
    return x.mul_(factor[:, None, None, None]).add_(towards[:, None, None, None]).clamp_(0, 1)


def adjust_brightness(x: Float[Tensor, "n c h w"], factor: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Blend with black: clamp(factor x)."""
    return _blend(x, torch.zeros((), device=x.device), factor)


def adjust_contrast(x: Float[Tensor, "n c h w"], factor: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Blend with the mean grey of the image."""
    return _blend(x, luma(x).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(x: Float[Tensor, "n 3 h w"], factor: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Blend with the grey picture."""
    return _blend(x, luma(x), factor)


def adjust_hue(x: Float[Tensor, "n 3 h w"], shift: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Turn the colour circle by `shift` turns, leaving value and saturation."""
    red, green, blue = x.unbind(1)
    value, at = x.max(1)
    chroma = value - x.amin(1)
    safe = torch.where(
        chroma > 0, chroma, torch.ones_like(chroma)
    )  # a grey pixel has no hue, and chroma 0 keeps it grey
    sector = torch.stack([(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe], 1)
    hue = sector.gather(1, at.unsqueeze(1)).squeeze(1) + 6 * shift[:, None, None]  # in sixths of a turn
    channels = []
    for place in (5, 3, 1):
        k = (hue + place) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    weight = factor[:, None, None, None]
    return (weight * x + (1 - weight) * other).clamp_(0, 1)
