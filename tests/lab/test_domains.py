"""Witnesses: images told apart by their pixels, masses block by block, closed-form spectra, the transfer theorem."""

import itertools

import pytest
import torch

from companion.lab.data import ImageSet
from companion.lab.domains import Views, carry_head, crossing_law, two_domains
from companion.lab.graphs import neighbour_law
from companion.theory.blocks import block_spectrum
from companion.theory.graph import PositivePairGraph
from companion.theory.spectral import embedding
from companion.theory.transfer import block_transfer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_images(n=120, classes=4, side=5):
    """Images of random pixels: no two are alike, in whatever way they are shown."""
    images = torch.randint(0, 256, (n, 1, side, side), generator=generator(), dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % classes, tuple("abcd"[:classes]), "noise")


def grid(classes=2, per_block=20, d=4):
    """Points in blocks, class by class and within a class domain by domain."""
    label = torch.arange(classes).repeat_interleave(2 * per_block)
    domain = torch.arange(2).repeat_interleave(per_block).repeat(classes)
    return Views(torch.rand(len(label), d, generator=generator()), label, domain)


class TestTwoDomains:
    def test_no_image_is_in_both_domains_and_each_is_shown_as_its_domain_has_it(self):
        images = noise_images()
        views = two_domains(images, (3, 1), 12, generator())
        assert views.points.shape == (48, 25)
        pictures = views.points.reshape(48, 1, 5, 5)
        plain, negative = images.float(), 1 - images.float().transpose(2, 3)
        origin = []
        for x, domain in zip(pictures, views.domain, strict=True):
            shown = negative if domain else plain
            (found,) = torch.nonzero((shown - x).abs().amax((1, 2, 3)) < 1e-6, as_tuple=True)
            assert len(found) == 1
            origin.append(int(found))
        assert len(set(origin)) == 48
        assert torch.equal(images.labels[origin], torch.tensor([3, 1])[views.label])

    def test_classes_come_in_the_order_asked_for_and_domains_one_after_the_other(self):
        views = two_domains(noise_images(), (3, 0, 1), 5, generator())
        assert views.label.tolist() == [0] * 10 + [1] * 10 + [2] * 10
        assert views.domain.tolist() == 3 * ([0] * 5 + [1] * 5)

    def test_the_generator_decides_the_choice(self):
        first, again, other = (two_domains(noise_images(), (0, 1), 8, generator(seed)).points for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize(("classes", "wrong", "found"), [((3, 1), 3, 30), ((0, 7), 7, 0)])
    def test_a_class_with_too_few_images_is_named_by_its_label(self, classes, wrong, found):
        images = noise_images() if found else noise_images(400)
        with pytest.raises(ValueError, match=rf"class {wrong}\b.*\b32\b.*\b{found}\b"):
            two_domains(images, classes, 16, generator())


def masses(K, views):
    """Mass that each row sends to its own block, other classes, the same class across, and the rest; (N, 4)."""
    here, alike = views.domain[:, None] == views.domain, views.label[:, None] == views.label
    blocks = (here & alike, here & ~alike, ~here & alike, ~here & ~alike)
    return torch.stack([(K * block).sum(1) for block in blocks], 1)


class TestCrossingLaw:
    @pytest.mark.parametrize("classes", [2, 3])
    @pytest.mark.parametrize("same_class", [0.0, 0.3, 1.0])
    def test_rows_are_a_law(self, classes, same_class):
        K = crossing_law(grid(classes), same_class, neighbours=6)
        assert K.dtype == torch.float64
        assert (K >= 0).all()
        assert torch.allclose(K.sum(1), torch.ones(len(K), dtype=torch.float64), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("classes", [2, 3])
    @pytest.mark.parametrize("same_class", [0.0, 0.3, 1.0])
    def test_blocks_have_the_masses_asked_for(self, classes, same_class):
        views = grid(classes)
        K = crossing_law(views, same_class, neighbour=0.0, neighbours=6, within=0.6, across_classes=0.15)
        expected = torch.tensor([0.6, 0.15, 0.25 * same_class, 0.25 * (1 - same_class)], dtype=torch.float64)
        assert torch.allclose(masses(K, views), expected.expand(len(K), -1), rtol=0, atol=1e-12)
        first = K[0].reshape(2 * classes, 20)
        assert torch.equal(first, first[:, :1].expand(-1, 20))  # within a block every image is as likely

    def test_the_neighbours_are_those_of_the_same_domain(self):
        views = grid()
        K = crossing_law(views, 0.8, neighbour=0.4, neighbours=6)
        rest = crossing_law(views, 0.8, neighbour=0.0, neighbours=6)
        near = torch.zeros_like(K)
        for d in (0, 1):
            (members,) = torch.nonzero(views.domain == d, as_tuple=True)
            near[members[:, None], members] = torch.from_numpy(neighbour_law(views.points[members], 6).toarray())
        assert torch.allclose(K, 0.4 * near + 0.6 * rest, rtol=0, atol=1e-14)
        across = torch.tensor([0.6 * 0.2 * 0.8, 0.6 * 0.2 * 0.2], dtype=torch.float64).expand(len(K), -1)
        assert torch.allclose(masses(K, views)[:, 2:], across, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("classes", [2, 3])
    @pytest.mark.parametrize("same_class", [0.1, 0.5, 0.9])
    def test_without_neighbours_the_spectrum_is_that_of_the_block_graph(self, classes, same_class):
        views, n = grid(classes), 20
        K = crossing_law(views, same_class, neighbour=0.0, neighbours=6)
        assert torch.allclose(K, K.T, rtol=0, atol=1e-15)
        weights = (0.7 / n, 0.2 * same_class / n, 0.1 / n / (classes - 1), 0.2 * (1 - same_class) / n / (classes - 1))
        closed = block_spectrum(classes, 2, *weights).values().square().sort(descending=True).values  # A = K K / N
        found = PositivePairGraph.from_augmentation(K).eigenpairs(2 * classes + 1).values
        assert torch.allclose(found[:-1], closed, rtol=0, atol=1e-12)
        assert abs(float(found[-1])) < 1e-12

    def test_exchanging_the_classes_of_one_domain_turns_the_knob_around(self):
        views = grid()
        exchanged = Views(views.points, torch.where(views.domain == 1, 1 - views.label, views.label), views.domain)
        laws = {share: crossing_law(views, share, neighbours=6) for share in (0.0, 0.2, 0.5, 0.8, 1.0)}
        for share, other in ((0.0, 1.0), (0.2, 0.8), (0.5, 0.5), (0.8, 0.2), (1.0, 0.0)):
            assert torch.allclose(crossing_law(exchanged, share, neighbours=6), laws[other], rtol=0, atol=1e-15)
        assert not torch.allclose(laws[0.8], laws[0.2], rtol=0, atol=1e-4)
        assert torch.allclose(masses(laws[0.5], views)[:, 2], masses(laws[0.5], views)[:, 3], rtol=0, atol=1e-15)


WEIGHTS = [  # within, across_domains, across_classes, across_both
    (0.40, 0.10, 0.15, 0.03),
    (0.40, 0.04, 0.15, 0.03),
    (0.40, 0.03, 0.15, 0.08),
    (0.40, 0.03, 0.04, 0.10),
    (0.40, 0.15, 0.03, 0.08),
    (0.40, 0.02, 0.15, 0.05),
]


def least_norm(U, label, domain):
    """Scores of the head of least norm that fits the centred source labels, by the pseudo-inverse."""
    Y = torch.nn.functional.one_hot(label).double()
    source = domain == 0
    return U @ torch.linalg.pinv(U[source], rtol=1e-9) @ (Y - Y.mean(0))[source]


def transfer_factor(classes, weights, k):
    """The theorem's factor; None where k cuts through equal eigenvalues and features are not determined."""
    try:
        return block_transfer(classes, 2, *weights, k=k)
    except ValueError as error:
        if "cuts through" not in str(error):
            raise
        return None


class TestCarryHead:
    @pytest.mark.parametrize(("classes", "weights"), list(itertools.product((2, 3, 4), WEIGHTS)))
    def test_the_target_follows_the_transfer_factor(self, classes, weights):
        graph = PositivePairGraph.blocks(classes, 2, *weights, size=5)
        label = torch.arange(classes).repeat_interleave(10)
        domain = torch.arange(2).repeat_interleave(5).repeat(classes)
        centred = torch.nn.functional.one_hot(label).double() - 1 / classes
        tried = 0
        for k in range(1, 2 * classes + 1):
            factor = transfer_factor(classes, weights, k)
            if factor:
                U = embedding(graph, k)
                found = carry_head(U, label, domain)
                assert (found.source, found.target) == (1.0, 1.0 if factor > 0 else 0.0)
                scores = least_norm(U, label, domain)
                assert torch.allclose(scores[domain == 1], factor * centred[domain == 1], rtol=0, atol=1e-8)
                tried += 1
        assert tried >= 2

    def test_both_signs_are_among_the_cases(self):
        assert {block_transfer(2, 2, *weights) > 0 for weights in WEIGHTS} == {True, False}

    def test_a_ridge_by_hand(self):
        # one feature, two source views: B = (x'x + n penalty)^-1 x'(Y - 1/2) = (2 + 2 * 1/2)^-1 (-1, 1) = (-1/3, 1/3)
        U = torch.tensor([[-1.0], [1.0], [3.0], [2.0]])
        label, domain = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
        found = carry_head(U, label, domain, penalty=0.5)
        assert (found.source, found.target) == (1.0, 0.5)
        assert found.domain == 0.75  # the probe has the sign of x'(2 d - 1) = 5: three of four views are on its side
        assert found.distance == pytest.approx(2.5 / 1.75)

    def test_without_an_intercept_moving_the_features_matters_and_turning_them_does_not(self):
        U = torch.randn(80, 6, generator=generator())
        label, domain = torch.arange(80) % 2, torch.arange(80) // 40
        Q = torch.linalg.qr(torch.randn(6, 6, generator=generator(1))).Q
        before = carry_head(U, label, domain)
        turned = carry_head(U @ Q, label, domain)
        assert (turned.source, turned.target, turned.domain) == (before.source, before.target, before.domain)
        assert turned.distance == pytest.approx(before.distance, rel=1e-5)
        assert carry_head(U + 5, label, domain) != before

    def test_held_out_views_are_counted_and_never_fitted(self):
        U = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        label, domain = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
        assert carry_head(U, label, domain, (U, label, domain)) == carry_head(U, label, domain)
        held_out = (U[[0, 1, 2, 2]], torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
        found = carry_head(U, label, domain, held_out)
        assert (found.source, found.target) == (0.5, 0.5)
        assert found.domain == 1.0

    def test_target_labels_are_never_looked_at(self):
        U, label, domain = torch.randn(60, 5, generator=generator()), torch.arange(60) % 3, torch.arange(60) // 30
        held_out = (torch.randn(90, 5, generator=generator(1)), torch.arange(90) % 3, torch.arange(90) // 45)
        before = carry_head(U, label, domain, held_out)
        other = torch.where(domain == 1, (label + 1) % 3, label)
        assert carry_head(U, other, domain, held_out) == before
        changed = torch.where(domain == 0, (label + 1) % 3, label)
        assert carry_head(U, changed, domain, held_out) != before
