"""One random view of each image of a batch, each with its own draw: ours, torchvision v2 image by image, kornia."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks import peers
from benchmarks.measure import Measurement, floor, paired, summary, versus
from companion.lab.augment import Augmentation, cifar, fashion

BATCH = 512  # two views each of 256 images


@dataclass(frozen=True)
class Chain:
    """A chain of random changes, and the images that it is for."""

    name: str
    law: Augmentation
    channels: int
    size: int


CHAINS = (
    Chain("crop, flip, brightness, contrast", Augmentation((0.2, 1.0), flip=0.5, brightness=0.4, contrast=0.4), 1, 28),
    Chain("augment.fashion, with noise", fashion(), 1, 28),
    Chain("augment.cifar, with colour", cifar(), 3, 32),
)


def measure() -> list[Measurement]:
    """Three chains; torchvision gives a whole batch one draw, hence image by image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [row for chain in CHAINS for row in of_chain(chain)]


def of_chain(chain: Chain) -> list[Measurement]:
    """Ours beside each peer, which must have the distribution of ours."""
    law, generator = chain.law, torch.Generator().manual_seed(0)
    shape = (BATCH, chain.channels, chain.size, chain.size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    one_view = peers.torchvision_view(law, chain.size)
    views = peers.kornia_views(law, chain.size)
    calls = {
        "ours": lambda: law(images, generator),
        "torchvision v2": lambda: torch.stack([one_view(image) for image in images]),
        "kornia": lambda: views(images / 255),
    }
    for name in ("torchvision v2", "kornia"):
        peers.check(name, calls["ours"](), calls[name]())
    found = paired(calls, n=9, warm=2)
    least = 1e3 * floor(bytes=images.numel() * 5)  # a byte of each pixel read, a float32 written
    return [
        summary(
            chain.name,
            [1e3 * value for value in found["ours"]],
            "ms",
            f"{BATCH} images of {chain.channels} × {chain.size} × {chain.size}",
            ratio=versus(found["ours"], found[name]),
            peer=name,
            floor=least,
            floor_says="bytes of the pixels, once",
        )
        for name in ("torchvision v2", "kornia")
    ]
