"""Crop, flip, brightness, contrast of a batch, each image with its own draw: ours against torchvision v2."""

import torch
from torchvision.transforms import v2

from benchmarks.measure import Measurement, seconds, summary
from companion.lab.augment import Augmentation


def measure() -> list[Measurement]:
    """Fashion-MNIST and CIFAR shapes; torchvision gives a whole batch one draw, hence image by image."""
    rows = []
    for channels, size in ((1, 28), (3, 32)):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (256, channels, size, size), dtype=torch.uint8, generator=generator)
        ours = Augmentation(area=(0.2, 1.0), flip=0.5, brightness=0.4, contrast=0.4)
        crop = v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=False)
        steps = [v2.ToDtype(torch.float32, scale=True), crop, v2.RandomHorizontalFlip()]
        theirs = v2.Compose([*steps, v2.ColorJitter(brightness=0.4, contrast=0.4)])
        note = f"256 images of {channels} × {size} × {size}"

        def batched(images=images, ours=ours, generator=generator) -> object:
            return ours(images, generator)

        def one_by_one(images=images, theirs=theirs) -> object:
            return torch.stack([theirs(image) for image in images])

        rows.append(summary("companion.lab.augment", [1e3 * v for v in seconds(batched, n=15, warm=3)], "ms", note))
        rows.append(summary("torchvision v2, per image", [1e3 * v for v in seconds(one_by_one, n=7)], "ms", note))
    return rows
