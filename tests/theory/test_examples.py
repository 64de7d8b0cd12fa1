"""Witnesses: laws and graphs by loops over every entry, counts of drawn pairs, half-planes by angle, Cover's count."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.theory import examples
from companion.theory.graph import PositivePairGraph


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_adjacency(K: torch.Tensor) -> torch.Tensor:
    """Mean over images of the chance to see both views, entry by entry."""
    images, views = K.shape
    A = torch.zeros(views, views, dtype=torch.float64)
    for x, y, i in itertools.product(range(views), range(views), range(images)):
        A[x, y] += K[i, x] * K[i, y] / images
    return A


class TestRandomGraph:
    @pytest.mark.parametrize(("images", "views"), [(3, 7), (8, 5)])
    def test_entry_by_entry(self, images, views):
        u = torch.rand(images, views, generator=seeded(2), dtype=torch.float64)
        K = torch.stack([row**4 / sum(float(w) ** 4 for w in row) for row in u])
        graph = examples.random_graph(images, views, seeded(2))
        assert torch.allclose(graph.adjacency, naive_adjacency(K), rtol=0, atol=1e-15)

    @given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.integers(2, 15))
    def test_connected_with_unequal_degrees_and_of_a_rank_of_at_most_the_images(self, seed, images, views):
        graph = examples.random_graph(images, views, seeded(seed))
        assert (graph.n, graph.component_count) == (views, 1)
        assert len(graph.degree.unique()) == views
        values = torch.linalg.eigvalsh(graph.normalized).flip(0)
        assert bool((values[images:].abs() < 1e-12).all())
        assert float(values.min()) > -1e-12

    def test_one_generator_gives_one_graph_after_the_other(self):
        draw = seeded()
        first, second = (examples.random_graph(4, 6, draw).adjacency for _ in range(2))
        assert torch.equal(first, examples.random_graph(4, 6, seeded()).adjacency)
        assert not torch.equal(first, second)


class TestLineGraph:
    def test_entry_by_entry(self):
        images, views, width = 7, 9, 0.15
        K = torch.tensor(
            [[math.exp(-((i / 6 - x / 8) ** 2) / (2 * width**2)) for x in range(views)] for i in range(images)],
            dtype=torch.float64,
        )
        graph = examples.line_graph(images, views, width)
        assert torch.allclose(graph.adjacency, naive_adjacency(K / K.sum(1, keepdim=True)), rtol=0, atol=1e-15)

    @pytest.mark.parametrize("width", [0.08, 0.12, 0.2])
    def test_leading_eigenvalues_fall_and_are_well_separated(self, width):
        line = examples.line_graph(30, 40, width).eigenpairs(5).values
        gaps = line[:-1] - line[1:]
        assert float(line[0]) == pytest.approx(1, abs=1e-12)
        assert float(gaps.min()) > 0.03
        random = examples.random_graph(30, 40, seeded()).eigenpairs(5).values
        assert float(gaps[1:].min()) > float((random[1:-1] - random[2:]).min())

    def test_a_wider_view_leaves_fewer_directions(self):
        traces = [float(examples.line_graph(30, 40, width).normalized.trace()) for width in (0.05, 0.1, 0.2, 0.4)]
        assert traces == sorted(traces, reverse=True)

    def test_eigenvector_i_is_a_wave_with_i_changes_of_sign(self):
        """The kernel is totally positive, so its eigenvectors oscillate as those of a string (Gantmacher and Krein)."""
        vectors = examples.line_graph(30, 40, 0.12).eigenpairs(6).vectors
        for i in range(6):
            sign = vectors[:, i].sign()
            assert int((sign[1:] != sign[:-1]).sum()) == i

    def test_the_line_looks_the_same_from_both_ends(self):
        A = examples.line_graph(12, 17, 0.1).adjacency
        assert torch.allclose(A, A.flip(0, 1), rtol=0, atol=1e-15)


class TestClusterAugmentation:
    @given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 5), st.integers(1, 5), st.floats(0, 0.99))
    def test_every_row_keeps_its_share_and_leaks_the_rest(self, seed, clusters, images, views, leak):
        K, natural, view = examples.cluster_augmentation(clusters, images, views, leak, seeded(seed))
        assert K.shape == (clusters * images, clusters * views)
        assert natural.tolist() == [i // images for i in range(len(K))]
        assert view.tolist() == [x // views for x in range(K.shape[1])]
        for i, row in enumerate(K.tolist()):
            own = sum(mass for x, mass in enumerate(row) if x // views == i // images)
            assert own == pytest.approx(1 - leak, abs=1e-12)
            assert sum(row) == pytest.approx(1, abs=1e-12)
            assert min(row) >= 0

    @pytest.mark.parametrize(("m", "leak"), [(2, 0.1), (4, 0.1), (4, 0.3), (6, 0.05)])
    def test_eigenvalues_of_clusters_are_near_their_mean_field_value(self, m, leak):
        """Averaged over many views the law is that of m views, (1 - leak) I + leak (J - I) / (m - 1)."""
        expected = (1 - m * leak / (m - 1)) ** 2
        error = []
        for size in (15, 60):
            K, _, _ = examples.cluster_augmentation(m, size, size, leak, seeded(1))
            values = PositivePairGraph.from_augmentation(K).eigenpairs(m + 1).values
            error.append(float((values[1:m] - expected).abs().max()))
            assert float(values[0]) == pytest.approx(1, abs=1e-9)
            assert float(values[m]) < 1.5 / size  # nothing but noise is left
        assert error[1] < 0.005
        assert error[1] < error[0] / 2
        eye, J = torch.eye(m, dtype=torch.float64), torch.ones(m, m, dtype=torch.float64)
        exact = PositivePairGraph.from_augmentation((1 - leak) * eye + leak / (m - 1) * (J - eye)).eigenpairs(m).values
        assert exact[1:].tolist() == pytest.approx([expected] * (m - 1), abs=1e-12)

    def test_without_a_leak_the_clusters_are_apart(self):
        K, natural, view = examples.cluster_augmentation(3, 4, 5, 0.0, seeded())
        assert bool((K[natural[:, None] != view] == 0).all())
        graph = PositivePairGraph.from_augmentation(K, allow_disconnected=True)
        assert graph.component_count == 3

    @pytest.mark.parametrize("leak", [-0.1, 1.0, 2.0, math.nan])
    def test_a_leak_that_is_no_share(self, leak):
        with pytest.raises(ValueError, match=r"^cluster_augmentation: leak is a share of mass in \[0, 1\), got"):
            examples.cluster_augmentation(2, 3, 3, leak, seeded())


class TestSamplePairs:
    def test_frequencies_are_the_weights_of_the_edges(self):
        A = torch.tensor([[4.0, 1.0, 0.0], [1.0, 0.0, 2.0], [0.0, 2.0, 6.0]], dtype=torch.float64)
        pairs = examples.sample_pairs(PositivePairGraph.from_adjacency(A), 100, 1000, seeded())
        assert pairs.shape == (1000, 100, 2)
        assert pairs.dtype == torch.int64
        n = 100_000
        found = torch.zeros(3, 3, dtype=torch.float64)
        for x, y in pairs.flatten(0, 1).unique(dim=0).tolist():
            found[x, y] = float((pairs == torch.tensor([x, y])).all(-1).sum()) / n
        A /= A.sum()
        assert bool((found[A == 0] == 0).all())
        error = (A * (1 - A) / n).sqrt()
        assert float(((found - A).abs() / error)[A > 0].max()) < 4

    @pytest.mark.parametrize(("u", "pair"), [(0.0, [0, 1]), (1.0 - 2**-53, [2, 1])])
    def test_even_the_ends_of_the_unit_interval_are_edges(self, u, pair, monkeypatch):
        A = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
        graph = PositivePairGraph.from_adjacency(A)
        monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, u, dtype=torch.float64))
        assert examples.sample_pairs(graph, 1, 1, seeded()).tolist() == [[pair]]

    def test_pairs_of_a_batch_are_independent(self):
        """Pearson's chi-square of the first members of two pairs; marginals are known, so it has 35 degrees."""
        graph, n = examples.random_graph(4, 6, seeded(3)), 50_000
        pairs = examples.sample_pairs(graph, 2, n, seeded())
        table = torch.bincount(6 * pairs[:, 0, 0] + pairs[:, 1, 0], minlength=36).reshape(6, 6).double()
        expected = n * torch.outer(graph.degree, graph.degree)
        assert float(((table - expected) ** 2 / expected).sum()) < 66.6  # the 99.9 % quantile
        within = torch.bincount(6 * pairs[:, 0, 0] + pairs[:, 0, 1], minlength=36).reshape(6, 6).double()
        assert float(((within - expected) ** 2 / expected).sum()) > 1000  # the control: both views of one pair

    def test_a_generator_decides_everything(self):
        graph = examples.random_graph(4, 6, seeded(3))
        first, again, other = (examples.sample_pairs(graph, 5, 7, seeded(seed)) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def in_half_plane(points: list[tuple[int, int]]) -> bool:
    """Whether the directions of all points fit strictly into half a turn: some gap between neighbours is wider."""
    if (0, 0) in points:
        return False
    angles = sorted(math.atan2(y, x) for x, y in points)
    gaps = [after - before for before, after in itertools.pairwise(angles)] + [angles[0] + 2 * math.pi - angles[-1]]
    return max(gaps) > math.pi + 1e-9


class TestSeparable:
    @given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=7))
    def test_in_the_plane_by_angles(self, points):
        assert examples.separable(torch.tensor(points, dtype=torch.float64)) == in_half_plane(points)

    @given(st.lists(st.integers(-3, 3), min_size=1, max_size=6))
    def test_on_a_line_all_signs_are_the_same(self, points):
        same = all(x > 0 for x in points) or all(x < 0 for x in points)
        assert examples.separable(torch.tensor(points, dtype=torch.float64)[:, None]) == same

    @pytest.mark.parametrize(("m", "k"), [(4, 2), (5, 3), (6, 3), (6, 4), (4, 6)])
    def test_in_general_position_as_many_labellings_as_cover_counts(self, m, k):
        points = torch.randn(m, k, generator=seeded(), dtype=torch.float64)
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=m)), dtype=torch.float64)
        solved = sum(examples.separable(points * sign[:, None]) for sign in signs)
        assert solved == 2 * sum(math.comb(m - 1, i) for i in range(k))

    def test_scale_does_not_matter(self):
        points = torch.tensor([[1.0, 0.2], [0.3, 1.0], [1.0, -0.1]], dtype=torch.float64)
        for scale in (1e-6, 1.0, 1e6):
            assert examples.separable(scale * points)
            assert not examples.separable(scale * torch.cat([points, -points[:1]]))
