"""Image sets as tensors: one call, one frozen result, one clear error; ``python -m companion.lab.data`` fetches."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2 import functional

from companion.lab import fetch
from companion.lab.fetch import DataError

__all__ = ["NAMES", "DataError", "ImageSet", "generated", "load"]

TORCHVISION = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}
NAMES = ("digits", "fashion-mnist", *TORCHVISION, "folder", "generated")


@dataclass(frozen=True)
class ImageSet:
    """Images with labels, in memory.

    Attributes:
        images: (n, c, h, w) uint8.
        labels: (n,) int64; -1 where there is no label.
        classes: the name of each label.
        name: the name it was loaded by.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> ImageSet:
        """The images at `index` (positions or a mask), in that order."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def float(self) -> Float[Tensor, "n c h w"]:
        """The images as float32 in [0, 1]."""
        return self.images.float() / 255

    def flat(self) -> Float[Tensor, "n d"]:
        """The raw pixels as float32 vectors in [0, 1], one row an image."""
        return self.float().flatten(1)


def load(name: str, split: str = "train", root: str | Path | None = None, *, size: int = 64) -> ImageSet:
    """Load a set of images, fetching it first where it is absent.

    Fetched sets lie in ``$COMPANION_DATA``, else in the user's cache; a system copy of Fashion-MNIST is used as well.
    Fashion-MNIST is verified by SHA-256 at every load, CIFAR and STL-10 by torchvision's own MD5 sums.

    Args:
        name: "digits" (scikit-learn's 8 x 8 digits, every fifth image in the test split), "fashion-mnist", "cifar10",
            "cifar100", "stl10", "folder" (one sub-folder a class, below ``root/split`` if there is one), or
            "generated" (the default of `generated`).
        split: "train" or "test"; for STL-10 also "unlabeled".
        root: read the set from this folder and nowhere else; nothing is ever fetched into it.
        size: side in pixels to which the images of "folder" are resized and centre-cropped.

    Returns:
        The set.

    Raises:
        DataError: the set is unknown, missing, damaged or out of reach.

    >>> digits = load("digits", "test")
    >>> digits.images.shape, digits.images.dtype, len(digits.classes)
    (torch.Size([360, 1, 8, 8]), torch.uint8, 10)
    """
    if name not in NAMES:
        raise DataError(f"name: expected one of {', '.join(NAMES)}, found {name!r}")
    splits = ("train", "test", "unlabeled") if name == "stl10" else ("train", "test")
    if split not in splits:
        raise DataError(f"split of {name}: expected one of {', '.join(splits)}, found {split!r}")
    if name == "digits":
        return _digits(split)
    if name == "generated":
        return generated(split=split)
    if name == "fashion-mnist":
        return _fashion_mnist(split, root)
    if name == "folder":
        return _folder(split, root, size)
    return _torchvision(name, split, root)


def generated(
    n: int = 200, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 4, split: str = "train", seed: int = 0
) -> ImageSet:
    """Small images with a structure to learn: one random picture a class, under noise; label = index mod `classes`.

    Args:
        n: number of images.
        shape: channels, height and width of one.
        classes: number of classes; their pictures depend on `seed` alone, so that two splits share them.
        split: decides the noise.
        seed: decides the pictures.

    Returns:
        The set.

    >>> generated(5, (1, 4, 4), classes=2).labels
    tensor([0, 1, 0, 1, 0])
    """
    pictures = torch.rand(classes, *shape, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(n) % classes
    noise = torch.randn(n, *shape, generator=torch.Generator().manual_seed(2 * seed + 1 + (split == "test")))
    images = (pictures[labels] + 0.2 * noise).clamp(0, 1)
    return ImageSet((255 * images).byte(), labels, tuple(f"picture {c}" for c in range(classes)), "generated")


def _digits(split: str) -> ImageSet:
    pixels, labels = load_digits(return_X_y=True)  # (1797, 64), 0 ... 16
    images = torch.from_numpy(np.rint(pixels * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    everything = ImageSet(images, torch.from_numpy(labels).long(), tuple("0123456789"), "digits")
    test = torch.arange(len(images)) % 5 == 0
    return everything.subset(test if split == "test" else ~test)


def _fashion_mnist(split: str, root: str | Path | None) -> ImageSet:
    folder = fetch.locate(root)
    if folder is None and root is not None:
        mend = f"python -m companion.lab.data fashion-mnist --root '{root}'"
        raise DataError(f"{root}: expected the files of fashion-mnist, found none. Mend it with: {mend}")
    folder = folder or fetch.fetch()
    part = "train" if split == "train" else "t10k"
    images, labels = (fetch.read(folder, f"{part}-{rest}") for rest in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    return ImageSet(images.unsqueeze(1), labels.long(), tuple(datasets.FashionMNIST.classes), "fashion-mnist")


def _torchvision(name: str, split: str, root: str | Path | None) -> ImageSet:
    def opened(folder: Path, download: bool) -> datasets.VisionDataset:
        which = {"split": split} if name == "stl10" else {"train": split == "train"}
        return TORCHVISION[name](folder, download=download, **which)

    def download(folder: Path) -> None:
        with fetch.quiet_network():
            opened(folder, download=True)

    folder = Path(root).expanduser() if root is not None else fetch.store() / name
    try:
        if root is None and not folder.exists():
            fetch.install(folder, download)
        found = opened(folder, download=False)
    except (OSError, RuntimeError) as error:
        mend = f"mv '{folder}' '{folder}.damaged' && " if folder.exists() else ""
        raise DataError(
            f"{folder}: expected {name} as torchvision stores it, found: {' '.join(str(error).split())}. "
            f"Mend it with: {mend}python -m companion.lab.data {name} (needs a network)"
        ) from None
    images = torch.as_tensor(found.data)  # type: ignore[attr-defined]
    labels = found.labels if name == "stl10" else found.targets  # type: ignore[attr-defined]
    images = images if name == "stl10" else images.permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.as_tensor(labels).long(), tuple(found.classes), name)  # type: ignore[attr-defined]


def _folder(split: str, root: str | Path | None, size: int) -> ImageSet:
    if root is None:
        raise DataError('load("folder", root=...): expected a folder with one sub-folder a class, found no root')
    top = Path(root).expanduser()
    try:
        found = datasets.ImageFolder(top / split if (top / split).is_dir() else top)
        # filled in place: a list and its stack would need twice the memory
        images = torch.empty(len(found), 3, size, size, dtype=torch.uint8)
        for row in range(len(found)):
            image, _ = found[row]
            images[row] = functional.pil_to_tensor(functional.center_crop(functional.resize(image, [size]), [size]))
    except OSError as error:
        raise DataError(f"{top}: expected one sub-folder a class with readable images, found: {error}") from None
    return ImageSet(images, torch.tensor(found.targets), tuple(found.classes), "folder")


def main(arguments: list[str] | None = None) -> int:
    """Fetch and verify one set; print its folder and the hashes, or one line of error."""
    parser = argparse.ArgumentParser(prog="python -m companion.lab.data", description=main.__doc__)
    parser.add_argument("name", choices=("fashion-mnist", *TORCHVISION))
    parser.add_argument("--root", help="put fashion-mnist here instead of $COMPANION_DATA or the user's cache")
    options = parser.parse_args(arguments)
    try:
        if options.name == "fashion-mnist":
            print(fetch.fetch(options.root))
            for file, (_, digest) in fetch.FILES.items():
                print(f"{digest}  {file}")
        else:
            print(f"{options.name}: {len(load(options.name, root=options.root))} training images in {fetch.store()}")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
