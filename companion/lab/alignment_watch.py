r"""Watching whether a predictor and the embedding it reads come to share their eigenvectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from companion.lab.byol import Siamese
from companion.theory import spectra


class AlignmentWatch:
    r"""Observer for `fit`: the spectrum of a `Siamese` model's embedding, and how its predictor lies to it.

    The online encoder is evaluated in evaluation mode, chunk by chunk, on the same views every time, and left in the
    modes it was found in. With $C=\frac1{2n}\sum_{i,\text{view}} ff^\top$ (not centred, float64),
    $C=\sum_js_ju_ju_j^\top$:

    Args:
        x1: first views, on the device of the model.
        x2: second views.
        chunk: views evaluated at once.

    Attributes:
        steps: (T,) int64, updates done.
        spectrum: (T, k), $s_1\ge s_2\ge\dots$
        unit_spectrum: (T, k), the same of embeddings of unit length, which are all that a cosine loss sees; sum 1.
        predictor: (T, k), $u_j^\top W_pu_j$ in the order of the $s_j$; (T, 0) where there is no matrix $W_p$.
        cosines: (T, k), $\cos\angle(u_j, W_pu_j)$, 1 where an eigenvector is shared; (T, 0) likewise. It says nothing
            of a direction that the embedding does not use, nor inside a multiple eigenvalue.
        eigenvalues: (T, k), of the symmetric part of $W_p$, largest first; (T, 0) likewise.
        asymmetry: (T,), $\sum|W_p-W_p^\top|/\sum|W_p|$; nan where there is no matrix $W_p$.
        commutator: (T,), $\lVert CW_p-W_pC\rVert_F/\lVert C\rVert_F\lVert W_p\rVert_F$; nan likewise.
        spread: (T,), mean standard deviation of the coordinates of embeddings of unit length, times $\sqrt k$: 1 where
            they fill the sphere evenly, 0 where all images are one point.
        rank: (T,), effective rank of $C$, $\exp$ of the entropy of $s_j/\sum_is_i$; 0 where all embeddings are 0.

    Raises:
        ValueError: on a look, the model is not `Siamese`.
        FloatingPointError: on a look, an embedding is not finite.
    """

    def __init__(self, x1: Tensor, x2: Tensor, *, chunk: int = 1000) -> None:
        self.x, self.chunk = torch.cat([x1, x2]), chunk
        self.rows: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def __call__(self, step: int, model: nn.Module) -> None:
        """Look at the model after `step` updates."""
        if not isinstance(model, Siamese):
            raise ValueError(f"AlignmentWatch: expected a Siamese model, found {type(model).__name__}")
        z = self._embed(model.encoder).double()
        if not z.isfinite().all():
            raise FloatingPointError(f"AlignmentWatch: an embedding after {step} updates is not finite; lower the lr.")
        unit = nn.functional.normalize(z, dim=1)
        C = z.T @ z / len(z)
        s, U = torch.linalg.eigh(C)
        s, U = s.clamp(min=0).flip(0), U.flip(1)
        row = {
            "steps": torch.tensor(step),
            "spectrum": s,
            "unit_spectrum": torch.linalg.eigvalsh(unit.T @ unit / len(z)).clamp(min=0).flip(0),
            "spread": unit.std(0, correction=0).mean() * z.shape[1] ** 0.5,
            "rank": torch.tensor(spectra.effective_rank(s) if s[0] > 0 else 0.0, dtype=torch.float64),
            **_against(C, U, model.predictor.weight),
        }
        self.rows.append({name: value.cpu() for name, value in row.items()})

    def _embed(self, encoder: nn.Module) -> Tensor:
        modes = {module: module.training for module in encoder.modules()}
        encoder.eval()
        z = torch.cat([encoder(x) for x in self.x.split(self.chunk)])
        for module, training in modes.items():
            module.training = training
        return z

    steps = property(lambda self: self._curve("steps"))
    spectrum = property(lambda self: self._curve("spectrum"))
    unit_spectrum = property(lambda self: self._curve("unit_spectrum"))
    predictor = property(lambda self: self._curve("predictor"))
    cosines = property(lambda self: self._curve("cosines"))
    eigenvalues = property(lambda self: self._curve("eigenvalues"))
    asymmetry = property(lambda self: self._curve("asymmetry"))
    commutator = property(lambda self: self._curve("commutator"))
    spread = property(lambda self: self._curve("spread"))
    rank = property(lambda self: self._curve("rank"))

    def _curve(self, name: str) -> Tensor:
        return torch.stack([row[name] for row in self.rows])

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, for the checkpoints of `fit`."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Forget what was seen since the checkpoint and remember what it holds."""
        self.rows = [{name: value.cpu() for name, value in row.items()} for row in state["rows"]]


def _against(C: Tensor, U: Tensor, weight: Tensor | None) -> dict[str, Tensor]:
    """The predictor's part of a row."""
    if weight is None:
        nothing, unknown = C.new_zeros(0), C.new_tensor(torch.nan)
        rows = {name: nothing for name in ("predictor", "cosines", "eigenvalues")}
        return rows | {name: unknown for name in ("asymmetry", "commutator")}
    Wp = weight.double()
    moved = Wp @ U
    values = (U * moved).sum(0)
    return {
        "predictor": values,
        "cosines": values / torch.linalg.vector_norm(moved, dim=0),
        "eigenvalues": torch.linalg.eigvalsh((Wp + Wp.T) / 2).flip(0),
        "asymmetry": (Wp - Wp.T).abs().sum() / Wp.abs().sum(),
        "commutator": (C @ Wp - Wp @ C).norm() / (C.norm() * Wp.norm()),
    }
