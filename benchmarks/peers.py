"""The views of `companion.lab.augment` as torchvision v2, lightly and kornia make them, in the same distribution."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from companion.lab.augment import Augmentation

LIMIT = 4.5  # standard errors; one of seven statistics of three peers beyond it has a probability of 1.4e-4


def quiet(name: str) -> ModuleType:
    """Import a library that warns as it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def torchvision_view(law: Augmentation, size: int) -> Callable[[Tensor], Tensor]:
    """One view of one uint8 image, by the transforms of torchvision v2."""
    area = law.area or (1.0, 1.0)
    jitter = v2.ColorJitter(law.brightness, law.contrast, law.saturation, law.hue)
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(size, scale=area, ratio=law.aspect),  # before the floats: it has a path for uint8
        v2.RandomHorizontalFlip(law.flip),
        v2.RandomApply([jitter], law.jitter),
        *([v2.RandomGrayscale(law.grey)] if law.grey else []),
        v2.ToDtype(torch.float32, scale=True),
        *([v2.GaussianNoise(sigma=law.noise, clip=False)] if law.noise else []),
        v2.Normalize(law.mean, law.std),
    ]
    return v2.Compose(steps)


def lightly_view(law: Augmentation, size: int) -> Callable[[Image.Image], Tensor]:
    """One view of one picture, by lightly's SimCLR transform, which has no noise: that is torchvision's."""
    view = quiet("lightly.transforms.simclr_transform").SimCLRViewTransform(
        input_size=size,
        cj_prob=law.jitter,
        cj_bright=law.brightness,
        cj_contrast=law.contrast,
        cj_sat=law.saturation,
        cj_hue=law.hue,
        min_scale=law.area[0] if law.area else 1.0,
        random_gray_scale=law.grey,
        gaussian_blur=0.0,
        hf_prob=law.flip,
        normalize=None if law.noise else {"mean": list(law.mean), "std": list(law.std)},
    )
    if not law.noise:
        return view
    return v2.Compose([view, v2.GaussianNoise(sigma=law.noise, clip=False), v2.Normalize(law.mean, law.std)])


def kornia_views(law: Augmentation, size: int, mode: str = "slice") -> Callable[[Tensor], Tensor]:
    """Views of a batch of floats, by kornia, which draws for each image.

    Args:
        law: the distribution.
        size: side of the images.
        mode: "slice" cuts one image after the other; "resample" warps all at once, which is faster, and mixes the
            pixels at the edge of a crop with their neighbours outside it, beyond the image with zeros.
    """
    kornia = quiet("kornia.augmentation")
    steps = [
        kornia.RandomResizedCrop((size, size), law.area, law.aspect, align_corners=False, cropping_mode=mode),
        kornia.RandomHorizontalFlip(p=law.flip),
        kornia.ColorJitter(law.brightness, law.contrast, law.saturation, law.hue, p=law.jitter),
        *([kornia.RandomGrayscale(p=law.grey)] if law.grey else []),
        *([kornia.RandomGaussianNoise(0.0, law.noise, p=1.0)] if law.noise else []),
        kornia.Normalize(torch.tensor(law.mean), torch.tensor(law.std)),
    ]
    return kornia.AugmentationSequential(*steps, data_keys=["input"])


def picture(image: Tensor) -> Image.Image:
    """What lightly's transforms take, as torchvision's data sets of images hand it out."""
    return Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())


class TwoViews(Dataset):
    """Two views of an image and its label, as torch's loader and lightly's data set take them.

    Args:
        images: uint8.
        view: random, of one image.
        prepare: done to an image before both views.
    """

    def __init__(self, images: Tensor, view: Callable, prepare: Callable | None = None) -> None:
        self.images, self.view, self.prepare = images, view, prepare

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], int]:
        """Two views of one image; all labels are 0."""
        image = self.images[index]
        image = self.prepare(image) if self.prepare else image
        return (self.view(image), self.view(image)), 0


def statistics(views: Tensor) -> Tensor:
    """(n, 7): of each view mean and deviation of its pixels and their squares, border, differences of neighbours.

    The squares see by how much brightness and contrast vary, the others where the crops lie, how large they are and
    the noise.
    """
    border = torch.cat([views[..., 0, :], views[..., -1, :], views[..., 0], views[..., -1]], -1)
    mean, deviation = views.flatten(1).mean(1), views.flatten(1).std(1)
    slopes = [views.diff(dim=dim).square().flatten(1).mean(1) for dim in (2, 3)]
    return torch.stack([mean, mean**2, deviation, deviation**2, border.flatten(1).mean(1), *slopes], 1).double()


def distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """(7,) mean differences of the statistics of two views of each image, in standard errors."""
    difference = statistics(ours) - statistics(theirs)
    return difference.mean(0) / (difference.std(0) / len(difference) ** 0.5)


def check(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Refuse to compare with a peer whose views have another distribution.

    Raises:
        RuntimeError: a statistic differs by more than `LIMIT` standard errors.
    """
    found = distances(ours, theirs)
    if found.abs().max() > LIMIT:
        raise RuntimeError(f"{name}: expected views as ours, found statistics {found.tolist()} standard errors off")
