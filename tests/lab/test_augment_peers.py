"""Witnesses: the views of torchvision and of lightly, by means, deviations, borders and differences of neighbours."""

from dataclasses import replace

import pytest
import torch

from benchmarks import peers
from companion.lab import augment

N = 1500


@pytest.fixture(scope="module")
def images():
    """Bright discs in random places: crops, flips and borders all leave traces in the statistics."""
    generator = torch.Generator().manual_seed(0)
    places = 8 + 12 * torch.rand(2, N, 1, 1, generator=generator)
    radius = 3 + 7 * torch.rand(N, 1, 1, generator=generator)
    rows, columns = torch.arange(28.0)[:, None], torch.arange(28.0)
    discs = (radius - ((rows - places[0]) ** 2 + (columns - places[1]) ** 2).sqrt()).clamp(0, 1)
    return (25 + 200 * discs).byte()[:, None]


def views(law, images):
    return law(images, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["torchvision", "lightly"])
def test_the_distribution_is_the_peers(name, images):
    law = augment.fashion()
    view = getattr(peers, f"{name}_view")(law, 28)
    prepare = peers.picture if name == "lightly" else lambda image: image
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        theirs = torch.stack([view(prepare(image)) for image in images])
    peers.check(name, views(law, images), theirs)
    assert theirs.shape == (N, 1, 28, 28)


@pytest.mark.parametrize(
    "change", [{"area": (0.35, 1.0)}, {"brightness": 0.8}, {"noise": 0.06}, {"mean": (0.3,)}, {"jitter": 0.0}]
)
def test_another_distribution_is_refused(change, images):
    law = augment.fashion()
    with pytest.raises(RuntimeError, match="expected views as ours"):
        peers.check("toy", views(law, images), replace(law, **change)(images, torch.Generator().manual_seed(3)))


def test_a_data_set_of_two_views(images):
    law = replace(augment.fashion(), noise=0.0)
    pairs = peers.TwoViews(images, peers.lightly_view(law, 28), peers.picture)
    with torch.random.fork_rng(devices=[]):
        (one, other), label = pairs[3]
    assert len(pairs) == N
    assert label == 0
    assert one.shape == other.shape == (1, 28, 28)
    assert not torch.equal(one, other)
