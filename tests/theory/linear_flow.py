"""What the tests of the linear model share: random spectra, and the matrix flow by an adaptive solver."""

import numpy as np
import torch
from scipy.integrate import solve_ivp

MIXED = torch.tensor([2.0, 1.3, 0.9, 0.0, -0.3, -0.7, -2.5], dtype=torch.float64)  # three modes can be learned


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_spectrum(gamma: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A symmetric matrix with these eigenvalues, and its eigenvectors in their order."""
    V = torch.linalg.qr(gaussian(len(gamma), len(gamma), seed=seed)).Q
    Gamma = (V * gamma) @ V.T
    return (Gamma + Gamma.T) / 2, V


def follow(Gamma: torch.Tensor, W0: torch.Tensor, times: list[float] | np.ndarray, rtol: float = 1e-11) -> torch.Tensor:
    """Integrate the matrix flow; shape (times, k, m)."""
    G, shape = Gamma.numpy(), W0.shape

    def velocity(_, w):
        signal = w.reshape(shape) @ G
        return (4 * (signal - signal @ w.reshape(shape).T @ signal)).ravel()

    atol = rtol * min(1.0, float(W0.abs().max())) * 1e-3
    w = solve_ivp(velocity, (0, times[-1]), W0.numpy().ravel(), method="DOP853", t_eval=times, rtol=rtol, atol=atol)
    return torch.from_numpy(w.y.T.reshape(-1, *shape))


def correlation(W: torch.Tensor, Gamma: torch.Tensor) -> torch.Tensor:
    return W @ Gamma @ W.mT
