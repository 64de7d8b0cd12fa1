"""Witnesses: explicit features, an adaptive ODE solver in sample space, kernel PCA, pseudo-inverses, inertia."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from companion.theory.spectra import subspace_overlap
from companion.theory.stepwise import (
    KernelModes,
    contrastive_kernel,
    cross_correlation,
    kernel_embedding,
    kernel_embedding_at,
    kernel_modes,
    minimum_norm,
    singular_values,
    top_spectral,
)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def views(n: int, m: int, noise: float = 0.5, seed: int = 0) -> torch.Tensor:
    """Phi: n first views, then their n partners."""
    x = gaussian(n, m, seed=seed)
    return torch.cat([x + noise * gaussian(n, m, seed=seed + 1), x + noise * gaussian(n, m, seed=seed + 2)])


def rbf(a: torch.Tensor, b: torch.Tensor, width: float = 1.5) -> torch.Tensor:
    return torch.exp(-torch.cdist(a, b).square() / (2 * width**2))


def swap(n: int) -> torch.Tensor:
    J = torch.zeros(2 * n, 2 * n, dtype=torch.float64)
    J[:n, n:] = J[n:, :n] = torch.eye(n)
    return J


def explicit(Phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenpairs of Gamma in decreasing signed order."""
    gamma, V = torch.linalg.eigh(cross_correlation(Phi[: len(Phi) // 2], Phi[len(Phi) // 2 :]))
    return gamma.flip(0), V.flip(1)


def same_up_to_signs(A: torch.Tensor, B: torch.Tensor, atol: float) -> bool:
    return torch.allclose(A, B * (A * B).sum(0).sign(), rtol=0, atol=atol)


CASES = {
    "more features than views": views(12, 40),
    "fewer features than views": views(30, 9),
    "duplicated views": views(6, 20).repeat_interleave(2, 0),
    "identical partners": views(15, 7, noise=0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_linear_kernel_gives_the_linear_encoder(case):
    Phi, d = CASES[case], 4
    gamma, V = explicit(Phi)
    K, new = Phi @ Phi.T, gaussian(5, Phi.shape[1], seed=9)
    F = kernel_embedding(K, d)
    W = top_spectral(gamma, V, d)
    assert torch.allclose(kernel_modes(K, d).gamma, gamma[:d], rtol=1e-12)
    assert same_up_to_signs(F, Phi @ W.T, atol=1e-11)
    signs = (F * (Phi @ W.T)).sum(0).sign()
    assert torch.allclose(kernel_embedding_at(K, Phi @ new.T, d), new @ W.T * signs, rtol=0, atol=1e-11)
    spectrum = torch.linalg.eigvalsh(contrastive_kernel(K))
    size = min(len(K), len(gamma))  # beyond the smaller size both have zeros only
    top = gamma[gamma.abs().argsort(descending=True)[:size]]
    assert torch.allclose(spectrum[spectrum.abs().argsort(descending=True)[:size]], top, rtol=0, atol=1e-12)


def test_contrastive_kernel_is_similar_to_the_swapped_kernel():
    Phi = views(10, 30)
    K, J = Phi @ Phi.T, swap(10)
    K_Gamma = contrastive_kernel(K)
    unsymmetric = np.sort(np.linalg.eigvals((J @ K / 20).numpy()).real)
    assert np.allclose(torch.linalg.eigvalsh(K_Gamma), unsymmetric, atol=1e-11)
    root = kernel_modes(K, 1).root
    assert torch.allclose(root @ root, K, atol=1e-11)
    inverse = torch.linalg.inv(root)
    assert torch.allclose(K_Gamma, inverse @ (K @ J @ K / 20) @ inverse, atol=1e-9)
    assert isinstance(kernel_modes(K, 3), KernelModes)


@given(st.integers(0, 200), st.integers(1, 6))
def test_a_definite_kernel_has_as_many_negative_modes_as_positive_ones(seed, n):
    K = rbf(views(n, 8, seed=seed), views(n, 8, seed=seed))
    spectrum = torch.linalg.eigvalsh(contrastive_kernel(K))
    assert int((spectrum > 0).sum()) == int((spectrum < 0).sum()) == n
    assert kernel_embedding(K, n).shape == (2 * n, n)
    one_for_all = torch.linalg.eigvalsh(contrastive_kernel(torch.ones_like(K)))  # control: of rank one
    assert int((one_for_all > 1e-12).sum()) == 1
    assert one_for_all[0] > -1e-12


@pytest.mark.parametrize("features", [8, 200])
def test_identical_views_give_whitened_kernel_pca(features):
    n, d = 20, 3
    x = gaussian(n, features)
    K = rbf(x, x) if features == 8 else x @ x.T
    values, u = torch.linalg.eigh(K)
    values, u = values.flip(0)[:d], u.flip(1)[:, :d]
    doubled = K.repeat(2, 2)
    assert torch.allclose(kernel_modes(doubled, d).gamma, values / n, rtol=1e-12)
    F = kernel_embedding(doubled, d)
    assert torch.equal(F[:n].round(decimals=9), F[n:].round(decimals=9))
    assert same_up_to_signs(F[:n], n**0.5 * u, atol=1e-9)
    apart = rbf(views(n, 8), views(n, 8))  # control: views that differ
    assert (
        subspace_overlap(kernel_embedding(apart, d)[:n], torch.linalg.eigh(apart[:n, :n]).eigenvectors[:, -d:]) < 0.99
    )


def flow_in_sample_space(K: torch.Tensor, F0: torch.Tensor, times: list[float]) -> torch.Tensor:
    """Integrate minus the functional gradient of the loss; shape (times, 2n, d)."""
    N, shape = len(K), F0.shape

    def velocity(_, f):
        F = torch.from_numpy(f.reshape(shape))
        partners = F.roll(N // 2, 0)
        C = F.T @ partners / N
        return (-4 / N * K @ partners @ (C - torch.eye(shape[1], dtype=torch.float64))).numpy().ravel()

    f = solve_ivp(velocity, (0, times[-1]), F0.numpy().ravel(), "DOP853", t_eval=times, rtol=1e-11, atol=1e-14)
    return torch.from_numpy(f.y.T.reshape(-1, *shape))


def test_kernel_flow_is_the_closed_form():
    Phi, d, times = views(25, 6), 3, [1.0, 5.0, 20.0, 60.0]
    K = rbf(Phi, Phi, width=3.0)
    gamma, B, root = kernel_modes(K, d)
    s0, U = torch.tensor([1e-2, 3e-2, 1e-1], dtype=torch.float64), torch.linalg.qr(gaussian(d, d)).Q
    path = flow_in_sample_space(K, root @ B * s0 @ U.T, times)
    for t, F in zip(times, path, strict=True):
        assert torch.allclose(root @ B * singular_values(gamma, s0, t) @ U.T, F, rtol=0, atol=1e-9)
    forever = root @ B * singular_values(gamma, s0, float("inf"))
    assert torch.allclose(forever, kernel_embedding(K, d), atol=1e-10)
    generic = flow_in_sample_space(K, 1e-5 * root @ gaussian(50, d, seed=3), [300.0])[-1]
    assert subspace_overlap(generic, kernel_embedding(K, d)) > 0.99
    plain = torch.linalg.eigh(K).eigenvectors[:, -d:]  # control: the kernel without the pairs
    assert subspace_overlap(generic, plain) < subspace_overlap(generic, kernel_embedding(K, d)) - 0.005


@pytest.mark.parametrize("width", [1.0, 6.0])
def test_out_of_sample_formula_on_training_views_is_the_embedding(width):
    Phi = views(25, 6)
    K, d = rbf(Phi, Phi, width), 4
    F = kernel_embedding(K, d)
    assert torch.allclose(kernel_embedding_at(K, K, d), F, atol=1e-9)
    assert torch.allclose(kernel_embedding_at(K, K[:, 7:9], d), F[7:9], atol=1e-9)
    new = rbf(Phi, gaussian(6, 6, seed=5), width)
    gamma, B, root = kernel_modes(K, d)
    inverted = new.T @ torch.linalg.pinv(root, rcond=1e-14) @ B * gamma.rsqrt()
    assert torch.allclose(kernel_embedding_at(K, new, d), inverted, atol=1e-6)


def test_embedding_has_zero_loss_and_the_least_rkhs_norm():
    Phi, d = views(8, 30), 3
    K, J = Phi @ Phi.T, swap(8)
    F, (gamma, B, root) = kernel_embedding(K, d), kernel_modes(K, 8)
    assert torch.allclose(F.T @ J @ F / 16, torch.eye(d, dtype=torch.float64), atol=1e-12)

    def squared_norm(F: torch.Tensor) -> float:
        return float((F * torch.linalg.solve(K, F)).sum())

    assert squared_norm(F) == pytest.approx(minimum_norm(gamma, d), rel=1e-10)
    for seed in range(20):
        mixed = torch.linalg.qr(gaussian(8, d, seed=seed)).Q
        other = root @ (B * gamma.rsqrt()) @ mixed
        assert torch.allclose(other.T @ J @ other / 16, torch.eye(d, dtype=torch.float64), atol=1e-12)
        assert squared_norm(other) > minimum_norm(gamma, d)


def test_two_modalities_are_the_singular_value_decomposition_of_their_product():
    n, d = 12, 3
    x, y = gaussian(n, 5), gaussian(n, 7, seed=1)
    y[:, :5] += x
    K = torch.block_diag(x @ x.T, y @ y.T)
    u, sigma, vt = torch.linalg.svd(x.T @ y)
    spectrum = torch.linalg.eigvalsh(contrastive_kernel(K))
    assert torch.allclose(spectrum[-5:].flip(0), sigma / (2 * n), atol=1e-13)
    assert torch.allclose(spectrum[:5], -sigma / (2 * n), atol=1e-13)
    learned = torch.cat([x @ u[:, :d], y @ vt[:d].T]) * (n / sigma[:d]).sqrt()
    assert same_up_to_signs(kernel_embedding(K, d), learned, atol=1e-11)


def test_gauge_is_fixed():
    Phi = views(20, 6)
    K = rbf(Phi, Phi)
    all_modes, few = kernel_modes(K, 40), kernel_modes(K, 4)
    assert torch.allclose(all_modes.vectors[:, :4], few.vectors, atol=1e-10)
    assert torch.allclose(kernel_embedding(K, 6)[:, :4], kernel_embedding(K, 4), atol=1e-9)
    assert torch.allclose(kernel_embedding(9 * K, 4), kernel_embedding(K, 4), atol=1e-9)  # whitened: no scale left
    largest = few.vectors.gather(0, few.vectors.abs().argmax(0)[None])
    assert (largest > 0).all()
    assert (few.gamma.diff() < 0).all()
    single = kernel_embedding(K.float(), 3)
    assert single.dtype == torch.float64
    assert torch.allclose(single, kernel_embedding(K, 3), atol=1e-4)


def interleaved(n: int) -> torch.Tensor:
    return torch.arange(2 * n).reshape(2, n).T.ravel()


def test_interleaved_views_are_refused_since_they_give_another_answer():
    Phi = views(20, 10, noise=0.2)
    K, order = Phi @ Phi.T, interleaved(20)
    mixed = K[order][:, order]
    with pytest.raises(ValueError, match=r"views look interleaved.*check_order=False"):
        contrastive_kernel(mixed)
    for function in (lambda **o: kernel_modes(mixed, 2, **o), lambda **o: kernel_embedding_at(mixed, mixed, 2, **o)):
        with pytest.raises(ValueError, match="interleaved"):
            function()
        function(check_order=False)
    wrong = kernel_embedding(mixed, 2, check_order=False)
    assert subspace_overlap(wrong, kernel_embedding(K, 2)[order]) < 0.7
    assert torch.allclose(mixed[order.argsort()][:, order.argsort()], K)


@given(st.integers(0, 500), st.integers(1, 12), st.sampled_from([0.0, 0.3, 1.0, 10.0]), st.integers(1, 5))
def test_stacked_views_are_never_refused(seed, n, noise, m):
    Phi = views(n, m, noise, seed)
    contrastive_kernel(Phi @ Phi.T)
    contrastive_kernel(rbf(Phi, Phi))


def test_strong_augmentation_does_not_hide_interleaved_views():
    Phi, order = views(200, 40, noise=1.5), interleaved(200)  # partners have cosine 0.3
    for K in (Phi @ Phi.T, rbf(Phi, Phi, width=12.0)):
        contrastive_kernel(K)
        with pytest.raises(ValueError, match="interleaved"):
            contrastive_kernel(K[order][:, order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_of_a_singular_kernel_makes_no_positive_modes(dtype):
    Phi = views(20, 5, noise=0.3).to(dtype)
    positive = int((torch.linalg.eigvalsh(cross_correlation(Phi[:20], Phi[20:])) > 0).sum())
    K = Phi @ Phi.T
    assert kernel_embedding(K, positive).shape == (40, positive)
    with pytest.raises(ValueError, match=f"{positive} modes are positive"):
        kernel_embedding(K, positive + 1)


def test_smooth_sequences_and_sorted_classes_are_not_taken_for_interleaved_views():
    slow = torch.linspace(0, 3, 30, dtype=torch.float64)[:, None]
    noisy = torch.cat([slow, slow + 1])  # each view is nearer to its neighbours in time than to its partner
    contrastive_kernel(rbf(noisy, noisy))
    kin = gaussian(20, 50).repeat_interleave(2, 0)  # neighbours somewhat alike, and augmentation that spares nothing
    loose = torch.cat([kin[:40] + 1.5 * gaussian(40, 50, seed=3), gaussian(40, 50, seed=4)])
    contrastive_kernel(loose @ loose.T)
    classes = torch.eye(5, dtype=torch.float64).repeat_interleave(4, 0).repeat(2, 1)
    contrastive_kernel(classes @ classes.T)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contrastive_kernel(torch.eye(3)), r"expected \(2n, 2n\), first views then second, got \(3, 3\)"),
        (lambda: contrastive_kernel(torch.ones(4, 2)), r"got \(4, 2\)"),
        (lambda: contrastive_kernel(torch.ones(4)), r"got \(4,\)"),
        (lambda: contrastive_kernel(torch.ones(4, 4).triu()), "not symmetric"),
        (lambda: contrastive_kernel(torch.full((2, 2), torch.nan)), "expected finite numbers .* got inf or nan"),
        (lambda: contrastive_kernel(torch.eye(2, dtype=torch.int64)), "of a float dtype, got torch.int64"),
        (lambda: kernel_embedding(torch.zeros(4, 4), 1), "0 modes are positive .* there is no embedding, got d=1"),
        (lambda: contrastive_kernel(-torch.eye(2)), "eigenvalues from -1.0e.00 .* positive semidefinite"),
        (lambda: kernel_modes(torch.eye(4), 5), r"d must lie in 1\.\.4 \(the number of views\), got 5"),
        (
            lambda: kernel_embedding(torch.eye(4), 3),
            r"2 modes are positive beyond rounding, so d must lie in 1\.\.2, got d=3",
        ),
        (lambda: kernel_embedding(torch.ones(4, 4), 2), "1 modes are positive"),
        (lambda: kernel_embedding(torch.eye(4), 0), "got d=0"),
        (lambda: kernel_embedding_at(torch.eye(4), torch.ones(3, 1), 1), r"a row for each of 4 views, got \(3, 1\)"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call()
