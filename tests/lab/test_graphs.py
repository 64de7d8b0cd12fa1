"""Witnesses: dense loops over every pair of images, pictures put together again, frequencies of drawn pairs."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from companion.lab.graphs import bag_law, law_pairs, neighbour_law, patch_words
from companion.theory.graph import PositivePairGraph


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def naive_neighbour_law(points, neighbours):
    """The same law by a loop over all pairs, in float64."""
    n = len(points)
    distance = [[math.dist(points[i].tolist(), points[j].tolist()) for j in range(n)] for i in range(n)]
    sigma = np.median([sorted(row)[5] for row in distance])
    K = np.zeros((n, n))
    for i in range(n):
        for j in sorted(range(n), key=lambda j: distance[i][j])[: neighbours + 1]:
            K[i, j] = math.exp(-(distance[i][j] ** 2) / (2 * sigma**2))
        K[i] /= K[i].sum()
    return K


class TestNeighbourLaw:
    @pytest.mark.parametrize("neighbours", [5, 8, 39])
    def test_a_loop_over_all_pairs(self, neighbours):
        points = torch.randn(40, 6, generator=generator())
        found = neighbour_law(points, neighbours)
        assert found.shape == (40, 40)
        assert found.dtype == np.float64
        assert found.nnz == 40 * (neighbours + 1)
        assert np.allclose(found.toarray(), naive_neighbour_law(points, neighbours), rtol=1e-5, atol=1e-12)

    def test_rows_are_a_law_and_the_image_itself_is_the_likeliest_view(self):
        K = neighbour_law(torch.rand(60, 4, generator=generator()), 7).toarray()
        assert np.allclose(K.sum(1), 1, atol=1e-14)
        assert (K >= 0).all()
        assert (K.argmax(1) == np.arange(60)).all()

    def test_scale_shift_and_rotation_of_the_points_change_nothing(self):
        points = torch.randn(30, 5, generator=generator()).double()
        Q = torch.linalg.qr(torch.randn(5, 5, generator=generator(1), dtype=torch.float64)).Q
        before, after = neighbour_law(points, 6).toarray(), neighbour_law(7 * points @ Q + 3, 6).toarray()
        assert np.allclose(before, after, atol=1e-10)

    def test_the_graph_of_it_is_a_positive_pair_graph(self):
        graph = PositivePairGraph.from_augmentation(neighbour_law(torch.rand(50, 2, generator=generator()), 10))
        assert graph.n == 50
        assert float(graph.eigenpairs(1).values[0]) == pytest.approx(1, abs=1e-9)

    @pytest.mark.parametrize("neighbours", [4, 20, 25])
    def test_too_few_or_too_many_neighbours(self, neighbours):
        message = rf"^neighbour_law: expected 5 to 19 neighbours for 20 images, got {neighbours}$"
        with pytest.raises(ValueError, match=message):
            neighbour_law(torch.rand(20, 2, generator=generator()), neighbours)


def cut(image, side):
    """The patches of one picture, row by row, by slicing."""
    h, w = image.shape
    return [image[y : y + side, x : x + side] for y in range(0, h, side) for x in range(0, w, side)]


class TestPatchWords:
    def test_every_patch_has_the_word_of_its_nearest_centre(self):
        images = torch.randint(0, 256, (50, 1, 8, 12), generator=generator(), dtype=torch.uint8)
        word, pictures = patch_words(images, 4, 7)
        assert word.shape == (50, 2 * 3)
        assert pictures.shape == (7, 4, 4)
        assert word.dtype == torch.int64
        assert pictures.dtype == torch.float32
        for image, words in zip(images[:, 0].double() / 255, word, strict=True):
            for patch, chosen in zip(cut(image, 4), words, strict=True):
                distance = (pictures.double() - patch).square().sum((1, 2))
                assert distance[chosen] <= distance.min() + 1e-5

    def test_as_many_words_as_patches_put_the_picture_together_again(self):
        tiles = torch.randint(0, 256, (5, 3, 3), generator=generator(), dtype=torch.uint8)
        which = torch.randint(0, 5, (40, 4, 2), generator=generator(1))  # a grid of 4 x 2 tiles an image
        images = tiles[which].permute(0, 1, 3, 2, 4).reshape(40, 1, 12, 6)
        word, pictures = patch_words(images, 3, 5)
        again = pictures[word].reshape(40, 4, 2, 3, 3).permute(0, 1, 3, 2, 4).reshape(40, 1, 12, 6)
        assert torch.allclose(again, images / 255, atol=1e-6)
        assert all(len(word.flatten()[(which == t).flatten()].unique()) == 1 for t in range(5))

    def test_more_words_rebuild_a_picture_better(self):
        images = torch.randint(0, 256, (60, 1, 6, 6), generator=generator(), dtype=torch.uint8)
        patches = torch.stack([torch.stack(cut(image, 3)) for image in images[:, 0] / 255])
        error = []
        for words in (1, 4, 40):
            word, pictures = patch_words(images, 3, words)
            error.append(float((pictures[word] - patches).square().mean()))
        assert error[0] == pytest.approx(float((patches - patches.mean((0, 1))).square().mean()), rel=1e-2)
        assert error[0] > 1.05 * error[1] > 1.05**2 * error[2]

    def test_a_seed_is_a_codebook(self):
        images = torch.randint(0, 256, (60, 1, 6, 6), generator=generator(), dtype=torch.uint8)
        first, again, other = (patch_words(images, 3, 6, seed) for seed in (0, 0, 1))
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert not torch.equal(first[1], other[1])

    @pytest.mark.parametrize("side", [3, 5])
    def test_a_side_that_does_not_divide(self, side):
        message = rf"^patch_words: expected a side that divides 8 and 9 pixels, got {side}$"
        with pytest.raises(ValueError, match=message):
            patch_words(torch.zeros(2, 1, 8, 9, dtype=torch.uint8), side, 2)


def test_bag_law_is_a_histogram():
    word = torch.randint(0, 9, (20, 16), generator=generator())
    expected = [[sum(int(w) == v for w in row) / 16 for v in range(11)] for row in word]
    K = bag_law(word, 11)
    assert K.dtype == torch.float64
    assert torch.equal(K, torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(K.sum(1), torch.ones(20, dtype=torch.float64))


N_PAIRS = 200_000


def frequencies(K, independent=False):
    """Shares of every ordered pair of vertices among many drawn ones."""
    n = K.shape[1]
    sample = law_pairs(K, torch.arange(n, dtype=torch.float64)[:, None], independent)
    x1, x2 = sample(N_PAIRS, generator())
    assert x1.shape == x2.shape == (N_PAIRS, 1)
    pairs = (n * x1 + x2)[:, 0].long()
    return torch.bincount(pairs, minlength=n * n).reshape(n, n).double() / N_PAIRS


def standard_errors(found, expected):
    """Largest distance in standard errors; a pair that cannot occur must not."""
    assert bool((found[expected == 0] == 0).all())
    possible = expected > 0
    error = (expected * (1 - expected) / N_PAIRS).sqrt()
    return float(((found - expected)[possible] / error[possible]).abs().max())


def dense_law():
    """Four images, six views, rows of different length; some pairs of views come from no image."""
    shown = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]])
    K = shown * (torch.rand(4, 6, generator=generator(), dtype=torch.float64) + 0.1)
    return K / K.sum(1, keepdim=True)


@pytest.mark.parametrize("storage", ["dense", "sparse", "unsorted"])
class TestLawPairs:
    def law(self, storage):
        K = dense_law()
        if storage == "dense":
            return K
        sparse = csr_array(K.numpy())
        if storage == "unsorted":  # every row's entries in reverse order
            ends = zip(sparse.indptr[:-1], sparse.indptr[1:], strict=True)
            order = np.concatenate([np.arange(first, last)[::-1] for first, last in ends])
            sparse = csr_array((sparse.data[order], sparse.indices[order], sparse.indptr), shape=sparse.shape)
        return sparse

    def test_pairs_have_the_frequencies_of_the_graph(self, storage):
        K = dense_law()
        A = torch.zeros(6, 6, dtype=torch.float64)
        for i in range(4):  # an image, then two independent views of it
            A += torch.outer(K[i], K[i]) / 4
        found = frequencies(self.law(storage))
        assert (A == 0).sum() == 16
        assert standard_errors(found, A) < 4  # largest of 20 numbers
        assert standard_errors(found, torch.outer(A.sum(1), A.sum(1))) > 40  # the control

    def test_independent_pairs_have_those_of_the_product_of_marginals(self, storage):
        K = dense_law()
        p = K.mean(0)
        found = frequencies(self.law(storage), independent=True)
        assert standard_errors(found, torch.outer(p, p)) < 4

    def test_a_generator_decides_everything(self, storage):
        views = torch.randn(6, 2, 3, generator=generator())
        sample = law_pairs(self.law(storage), views)
        (x1, x2), (y1, y2), (z1, _) = sample(50, generator(1)), sample(50, generator(1)), sample(50, generator(2))
        assert torch.equal(x1, y1)
        assert torch.equal(x2, y2)
        assert not torch.equal(x1, z1)
        assert x1.shape == x2.shape == (50, 2, 3)
        assert all(any(torch.equal(x, view) for view in views) for x in x1)


def test_dense_and_sparse_laws_draw_alike():
    K = torch.rand(5, 7, generator=generator(), dtype=torch.float64)
    K /= K.sum(1, keepdim=True)
    views = torch.arange(7.0)[:, None]
    dense, sparse = law_pairs(K, views), law_pairs(csr_array(K.numpy()), views)
    for x, y in zip(dense(100, generator()), sparse(100, generator()), strict=True):
        assert torch.equal(x, y)
