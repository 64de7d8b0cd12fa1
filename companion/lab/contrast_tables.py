"""The two tables of Wang et al. (2023), cell by cell: SimCLR with attention, SimSiam with several stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch

from companion.lab import contrast, data, pretrain
from companion.lab.alignment_watch import AlignmentWatch
from companion.lab.contrast_network import Network
from companion.lab.data import ImageSet

#: Accuracy of the linear evaluation in percent on CIFAR-10, CIFAR-100 and ImageNet-100, by depth and method: as on the
#: slides, and for SimSiam on ResNet-50 as in the description of the published code.
PUBLISHED = {
    (18, "simclr"): (84.5, 56.1, 62.3),
    (18, "simclr-attn"): (85.4, 56.9, 63.1),
    (50, "simclr"): (88.2, 59.8, 66.0),
    (50, "simclr-attn"): (89.4, 60.7, 66.7),
    (18, "simsiam"): (83.82, 56.34, 68.76),
    (18, "simsiam-multi"): (84.75, 58.87, 70.52),
    (50, "simsiam"): (85.9, 58.4, 70.9),
    (50, "simsiam-multi"): (87.0, 59.8, 72.3),
}
IMAGES = ("cifar10", "cifar100", "folder")  # by the names of `data.load`; the folder holds ImageNet-100
SIZE = 224  # of the images of the folder


@dataclass(frozen=True)
class Row:
    """What tells one network of the tables from the others; rows that are equal are one network.

    Attributes:
        method: one of `contrast.METHODS`.
        depth: of the ResNet.
        images: "cifar10", "cifar100" or "folder".
        published: the table's number in percent; nan where there is none.
    """

    method: str
    depth: int
    images: str
    published: float = field(default=float("nan"), compare=False)

    @property
    def name(self) -> str:
        """For files and claims: "simclr-attn-resnet18-cifar10"."""
        images = "imagenet100" if self.images == "folder" else self.images
        return f"{self.method}-resnet{self.depth}-{images}"

    def recipe(self, images: ImageSet) -> contrast.Recipe:
        """The authors' configuration for `images`.

        Raises:
            ValueError: the images are of another set.
        """
        if images.name != self.images:
            raise ValueError(f"row {self.name}: expected images of {self.images}, found {images.name!r}")
        return contrast.authors(images, self.method, self.depth)


def table_rows() -> dict[str, Row]:
    """The twenty-four cells, by their names."""
    cells = product(PUBLISHED.items(), enumerate(IMAGES))
    rows = [Row(method, depth, name, published=values[i]) for ((depth, method), values), (i, name) in cells]
    return {row.name: row for row in rows}


def image_sets(name: str, root: str | Path | None = None, size: int = SIZE) -> tuple[ImageSet, ImageSet]:
    """Images to train on, encoder and classifier, and images to count on.

    Args:
        name: "cifar10", "cifar100" or "folder".
        root: of the folder, with one sub-folder a class below ``train`` and ``test``; all images lie in memory, 19 GB
            for ImageNet-100.
        size: side of the images of the folder in pixels.

    Returns:
        Training set and test set.

    Raises:
        DataError: the set is missing or damaged, or the folder has not both sub-folders, with the same classes.
    """
    if name == "folder" and root is not None:
        _check_splits(Path(root).expanduser())
    fit, test = (data.load(name, split, root, size=size) for split in ("train", "test"))
    return fit, test


def _check_splits(top: Path) -> None:
    """Before anything is read: `data.load` takes `top` itself for a split that is not there."""
    missing = [split for split in ("train", "test") if not (top / split).is_dir()]
    if missing:
        mend = f"Mend it: rename val, say, to test, mv '{top / 'val'}' '{top / 'test'}'"
        raise data.DataError(
            f"{top}: expected the folders train and test, one sub-folder a class in each, found no {missing[0]}. {mend}"
        )
    fit, test = ({p.name for p in (top / split).iterdir() if p.is_dir()} for split in ("train", "test"))
    if fit != test:
        odd = sorted(fit ^ test)
        place, other = ("train", "test") if odd[0] in fit else ("test", "train")
        raise data.DataError(
            f"{top}: expected the same classes in train and test, found {odd[0]!r} in {place} only "
            f"({len(odd)} such). Mend it: add {top / other / odd[0]} or remove {top / place / odd[0]}"
        )


def train(row: Row, images: ImageSet, seed: int, device: torch.device | str) -> tuple[Network, AlignmentWatch]:
    """Train the network of a row, from its checkpoint if there is one, under some twenty looks."""
    recipe, path = row.recipe(images), pretrain.checkpoint(f"{row.name}-{seed}")
    every = max(1, recipe.options.steps // 20)
    return contrast.run(recipe, images, seed, every=every, checkpoint=path, device=device)


def evaluate(model: Network, row: Row, fit: ImageSet, test: ImageSet, seed: int = 0, *, epochs: int = 100) -> float:
    """Accuracy of a linear classifier on the frozen encoder after its last epoch, in [0, 1].

    One protocol for all cells, that of `pretrain.linear_evaluation`, which is the authors' for SimSiam on ImageNet-100:
    SGD 30, a hundred epochs, batch 256, rate x 0.1 at 60 and 80. Theirs for SimCLR is shorter, with larger batches.
    """
    views = row.recipe(fit).augmentation
    return pretrain.linear_evaluation(model.encoder, fit, test, views, epochs=epochs, seed=seed)
