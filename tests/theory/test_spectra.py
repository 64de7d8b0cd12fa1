"""Witnesses: known angles between planes, scipy's subspace_angles, averages over random subspaces, and limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from companion.theory.spectra import effective_rank, principal_angles, subspace_overlap


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7, 0.1, math.pi / 4, 1.5, math.pi / 2])
def test_a_plane_tilted_by_a_known_angle(angle):
    e = torch.eye(4, dtype=torch.float64)
    tilted = torch.stack([e[0], math.cos(angle) * e[1] + math.sin(angle) * e[2]], dim=1)
    angles = principal_angles(e[:, :2], tilted)
    assert angles.tolist() == pytest.approx([0.0, angle], abs=1e-15, rel=1e-9)
    assert subspace_overlap(e[:, :2], tilted) == pytest.approx((1 + math.cos(angle) ** 2) / 2, abs=1e-14)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_angles_are_scipys_and_see_spaces_only(a, b, seed):
    A, B = gaussian(9, a, seed=seed), gaussian(9, b, seed=seed + 1)
    angles = principal_angles(A, B)
    assert angles.tolist() == pytest.approx(sorted(subspace_angles(A.numpy(), B.numpy())), abs=1e-9)
    assert torch.allclose(principal_angles(B, A @ gaussian(a, a, seed=seed + 2)), angles, atol=1e-9)
    assert torch.allclose(principal_angles(A, B, cosines=True), angles.cos(), atol=1e-12)


def test_overlap_of_random_spaces_is_dimension_over_ambient():
    pairs = [(gaussian(40, 5, seed=seed), gaussian(40, 8, seed=seed + 500)) for seed in range(200)]
    overlaps = torch.tensor([subspace_overlap(A, B) for A, B in pairs])
    assert abs(overlaps.mean() - 8 / 40) < 4 * overlaps.std() / 200**0.5


def test_effective_rank_counts_equal_directions():
    for n in (1, 3, 7):
        assert effective_rank(torch.eye(9)[:, :n] * 5) == pytest.approx(n, abs=1e-12)
    assert effective_rank(torch.tensor([1.0, 1e-300])) == pytest.approx(1)
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(4 / 3**0.75, rel=1e-12)  # entropy by hand


def test_effective_rank_of_a_matrix_is_that_of_its_singular_values():
    A = gaussian(12, 5)
    assert effective_rank(A) == pytest.approx(effective_rank(torch.linalg.svdvals(A)), rel=1e-12)
    assert effective_rank(A) < 5


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: principal_angles(torch.ones(3, 2), torch.eye(3)), "A has 2 columns of rank 1"),
        (lambda: principal_angles(torch.eye(3), torch.eye(4)), "A has 3 rows, B has 4"),
        (lambda: principal_angles(torch.ones(3), torch.eye(3)), "must be a matrix"),
        (lambda: effective_rank(torch.zeros(3)), "not all zero"),
        (lambda: effective_rank(torch.tensor([1.0, -1.0])), "non-negative"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call()
