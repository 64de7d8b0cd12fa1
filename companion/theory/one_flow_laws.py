r"""The table of the closing chapter as data: for every loss, its flow by autograd and the law of one mode beside it.

The two come from different code: the flow differentiates the whole loss, the law is what the chapter derives,
$\dot s = s\,(\gamma\psi - b)$. So every row can be held against itself.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from companion.theory import one_flow_losses as full
from companion.theory.mode_laws import contrastive_mode, vicreg_drive
from companion.theory.one_flow_curves import predictor_curve, stage_curve
from companion.theory.one_flow_losses import Graph, State
from companion.theory.oversmoothing import multi_stage_rate

Modes = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Law:
    r"""One row of the table.

    Attributes:
        name: what the loss is called.
        descends: what is descended, in TeX.
        law: the law of one mode, in TeX; $s$ is a singular value of $F$.
        growth: $\dot s/s$ at small $s$, in balance, in TeX.
        end: where a mode ends, in TeX; in words where it is not known.
        order: which modes come first.
        keeps: what keeps the features from collapsing.
        closed: what the closed form of a mode is, and where it stands.
        proved: label of the derivation in the book.
        flow: velocity of the whole state by automatic differentiation, from $(\text{state}, \bar A, p)$.
        mode: velocities of one mode of every part, from $\gamma$ and the parts' values.
        rate: growth rate at small $s$ per unit of time, from $\gamma$; zero where growth is not exponential.
        gain: $\psi$ of a mode that is balanced, from $\gamma$ and $s$; None where no one number has it.
        brake: $b$, likewise.
        ends: where the mode ends, from $\gamma$ and $s(0)$.
        curve: $s(t)$ from $\gamma$, $s(0)$ and $t$; None where there is no closed form.
        parts: a letter a part of the state: F features, or another set of features; W a predictor.
        step: duration of a step if the law is a recursion, else None.
    """

    name: str
    descends: str
    law: str
    growth: str
    end: str
    order: str
    keeps: str
    closed: str
    flow: Callable[[State, Graph, Tensor], State]
    mode: Callable[..., Modes]
    rate: Callable[[Tensor], Tensor]
    gain: Callable[[Tensor, Tensor], Tensor] | None
    brake: Callable[[Tensor, Tensor], Tensor] | None
    ends: Callable[[Tensor, Tensor], Tensor]
    curve: Callable[[Tensor, Tensor, Tensor], Tensor] | None
    proved: str = "prop-of-form"
    parts: str = "F"
    step: float | None = None

    def velocity(self, gamma: Float[Tensor, "*q"], s: Float[Tensor, "*q"]) -> Float[Tensor, "*q"]:
        r"""Return $\dot s$ of a mode whose predictor, target and past stages are in balance with it."""
        return self.mode(gamma, *(s for _ in self.parts))[0]


def _simple(gain: Callable[[Tensor, Tensor], Tensor], brake: Callable[[Tensor, Tensor], Tensor]) -> dict:
    """Return the fields of a law that has the features alone as its state."""
    return {
        "gain": gain,
        "brake": brake,
        "mode": lambda g, s: (s * (g * gain(g, s) - brake(g, s)),),
        "rate": lambda g: g * gain(g, 0 * g) - brake(g, 0 * g),
    }


def laws(
    temperature: float = 1.0, invariance: float = 1.25, follow: float = 0.5, step: float = 0.5, stages: int = 2
) -> dict[str, Law]:
    r"""Return the rows of the table by name.

    Args:
        temperature: $\tau > 0$ of InfoNCE.
        invariance: weight $\ell > 0$ of the invariance term in the spectral form of VICReg.
        follow: rate $\beta > 0$ at which a slow target follows.
        step: step size $\alpha$ in (0, 1] of the multi-stage recursion, the duration of one stage.
        stages: number of stages $r\ge1$ that it averages, the current one included.

    Returns:
        Eleven laws. The predictor's rows have no weight decay and the predictor's rate equal to the features'.

    Raises:
        ValueError: if a parameter is out of its range.

    References:
        The companion's own; `thm-of-modes`, `prop-of-form`.

    Examples:
        >>> row = laws()["spectral"]
        >>> float(row.velocity(torch.tensor(0.5), torch.tensor(0.5))), float(row.rate(torch.tensor(0.5)))
        (0.5, 2.0)
    """
    numbers = {"temperature": temperature, "invariance": invariance, "follow": follow, "step": step}
    for name, value in numbers.items():
        if not 0 < value < math.inf or (name == "step" and value > 1):
            raise ValueError(f"laws: {name} must be positive and finite, a step at most 1, got {value:g}")
    if stages < 1:
        raise ValueError(f"laws: stages counts what the target averages, at least 1, got {stages}")
    tau, ell, beta, alpha, r = temperature, invariance, follow, step, stages

    def staged_mode(g: Tensor, *s: Tensor) -> Modes:
        return g * sum(s[1:], s[0]) / r - s[0], *((s[i] - s[i + 1]) / alpha for i in range(r - 1))

    def kappa(g: Tensor) -> Tensor:
        return vicreg_drive(g, 1.0, ell)

    one, idle, chase = torch.ones_like, torch.zeros_like, "a predictor that falls short"
    first, faded = "large $\\gamma$ first", "small $\\gamma$ forgotten first"
    learnt = {"rate": idle, "gain": lambda g, s: s, "brake": lambda g, s: s**2, "ends": lambda g, s0: g}
    rows = {}
    rows["spectral"] = Law(
        name="Spectral contrastive",
        descends=r"\norm{\bar A-FF^\top}_F^2",
        law=r"\dot s=4s(\gamma-s^2)",
        growth=r"4\gamma",
        end=r"s^2=\gamma",
        order=first,
        keeps="negatives: $FF^\\top$ pushes back",
        closed="closed: {eq}`eq-contrastive-mode`",
        flow=full.plain_flow(full.spectral_loss),
        **_simple(lambda g, s: 4 * one(s), lambda g, s: 4 * s**2),
        ends=lambda g, s0: g.sqrt(),
        curve=lambda g, s0, t: contrastive_mode(g, 1.0, s0, t),
    )
    rows["barlow"] = Law(
        name="Barlow Twins",
        descends=r"\norm{F^\top\bar AF-I}_F^2",
        law=r"\dot s=4\gamma s(1-\gamma s^2)",
        growth=r"4\gamma",
        end=r"s^2=1/\gamma\ (\gamma>0)",
        order=first,
        keeps="whitening, as the gain's only limit",
        closed="closed: {eq}`eq-contrastive-mode`",
        flow=full.plain_flow(full.barlow_loss),
        **_simple(lambda g, s: 4 * (1 - g * s**2), lambda g, s: 0 * s),
        ends=lambda g, s0: g.rsqrt(),
        curve=lambda g, s0, t: contrastive_mode(g, g, s0, t),
    )
    rows["vicreg"] = Law(
        name="VICReg, spectral form",
        descends=r"2\ell\tr F^\top LF+\norm{F^\top F-I}_F^2",
        law=r"\dot s=4s(\kappa-s^2),\ \kappa=1-\ell(1-\gamma)",
        growth=r"4\kappa",
        end=r"s^2=\max(\kappa,0)",
        order=first,
        keeps="whitening, where $\\gamma>1-1/\\ell$",
        closed="closed: {eq}`eq-contrastive-mode`",
        flow=full.plain_flow(lambda F, normalized: full.vicreg_loss(F, normalized, ell)),
        **_simple(lambda g, s: 4 * ell * one(s), lambda g, s: 4 * (ell - 1) + 4 * s**2),
        ends=lambda g, s0: kappa(g).clamp(min=0).sqrt(),
        curve=lambda g, s0, t: contrastive_mode(kappa(g), 1.0, s0, t),
    )
    rows["infonce"] = Law(
        name="InfoNCE",
        descends=r"-\tfrac1\tau\tr F^\top\bar AF+\E_x\log Q_x",
        law=r"\dot s=\tfrac2\tau s(\gamma-s^2/\tau)+O(\norm F^5)",
        growth=r"\tfrac2\tau\gamma\ (\gamma_j,\ j\ge2)",
        end="not known; the two orders alone: $s^2=\\tau\\gamma$",
        order=f"{first} while small; the constant rests",
        keeps="negatives: the softmax graph pushes back",
        closed="closed: none",
        proved="prop-of-infonce",
        flow=full.info_nce_flow(tau),
        **_simple(lambda g, s: 2 / tau * one(s), lambda g, s: 2 / tau**2 * s**2),
        ends=lambda g, s0: (tau * g).sqrt(),
        curve=lambda g, s0, t: contrastive_mode(g, 1.0, s0, t / (2 * tau), 1 / tau),
    )
    rows["trained"] = Law(
        name="BYOL and SimSiam",
        descends=r"\tfrac12\E\norm{W^\top f(x)-\operatorname{sg}f(x^+)}^2",
        law=r"\dot s=sp(\gamma-p),\ \dot p=s^2(\gamma-p)",
        growth=r"\gamma s",
        end=r"s=\gamma\text{ in balance}",
        order=first,
        keeps=chase,
        closed="closed: {eq}`eq-of-omega`, in balance",
        flow=full.trained_flow,
        mode=lambda g, s, p: (s * p * (g - p), s**2 * (g - p)),
        **learnt,
        curve=predictor_curve,
        parts="FW",
    )
    rows["slow"] = Law(
        name="BYOL, slow target",
        descends=r"\tfrac12\E\norm{W^\top f(x)-\operatorname{sg}t(x^+)}^2",
        law=r"\dot s/p=\dot p/s=\gamma a-ps,\ \dot a=\beta(s-a)",
        growth=r"\gamma a",
        end=r"s=\gamma\text{ in balance}",
        order=first,
        keeps=chase,
        closed="closed: none",
        flow=full.slow_flow(beta),
        mode=lambda g, s, p, a: (p * (g * a - p * s), s * (g * a - p * s), beta * (s - a)),
        rate=idle,
        gain=None,
        brake=None,
        ends=lambda g, s0: g,
        curve=None,
        parts="FWF",
    )
    rows["set"] = Law(
        name="DirectPred",
        descends=r"the same, $W=(F^\top F)^{1/2}$ set",
        law=r"\dot s=s^2(\gamma-s)",
        growth=r"\gamma s",
        end=r"s=\gamma",
        order=first,
        keeps=chase,
        closed="closed: {eq}`eq-of-omega`",
        flow=full.set_flow(0.5),
        mode=lambda g, s: (s**2 * (g - s),),
        **learnt,
        curve=predictor_curve,
    )
    rows["copied"] = Law(
        name="DirectCopy",
        descends=r"the same, $W=F^\top F$ set",
        law=r"\dot s=s^3(\gamma-s^2)",
        growth=r"\gamma s^2",
        end=r"s^2=\gamma",
        order=first,
        keeps=chase,
        closed="closed: {eq}`eq-of-omega`",
        flow=full.set_flow(1.0),
        **_simple(lambda g, s: s**2, lambda g, s: s**4),
        ends=lambda g, s0: g.sqrt(),
        curve=lambda g, s0, t: predictor_curve(g, s0, t, power=1.0),
    )
    rows["optimal"] = Law(
        name="Optimal predictor",
        descends=r"the same, $W=(F^\top F)^{-1}F^\top\bar AF$ set",
        law=r"\dot s=0",
        growth=r"0",
        end=r"s=s(0)",
        order="none: only directions turn",
        keeps="the Gram matrix rests",
        closed="closed: constant",
        flow=full.set_flow(None),
        **_simple(lambda g, s: g * one(s), lambda g, s: g**2 * one(s)),
        ends=lambda g, s0: s0,
        curve=lambda g, s0, t: s0 + 0 * (g + t),
    )
    rows["alignment"] = Law(
        name="Alignment only",
        descends=r"\tr F^\top LF",
        law=r"\dot s=-2(1-\gamma)s",
        growth=r"-2(1-\gamma)",
        end=r"s=0\ (\gamma<1)",
        order=faded,
        keeps="nothing",
        closed="closed: exponential",
        flow=full.plain_flow(full.alignment_loss),
        **_simple(lambda g, s: 2 * one(s), lambda g, s: 2 * one(s)),
        ends=lambda g, s0: torch.where(g < 1 - 1e-12, 0.0, s0),
        curve=lambda g, s0, t: s0 * torch.exp(-2 * (1 - g) * t),
    )
    rows["stages"] = Law(
        name="Multi-stage",
        descends=r"\tfrac12\E\norm{f(x)-\operatorname{sg}z}^2",
        law=r"s^{t+1}=(1-\alpha)s^t+\tfrac{\alpha\gamma}r\textstyle\sum_{i<r}s^{t-i}",
        growth=r"\tfrac1\alpha\log\zeta",
        end=r"s=0\ (\gamma<1)",
        order=faded,
        keeps="nothing",
        closed="closed: stage recursion",
        flow=full.staged_flow(alpha),
        mode=staged_mode,
        rate=lambda g: multi_stage_rate(g, alpha, r).log() / alpha,
        gain=None,
        brake=None,
        ends=lambda g, s0: torch.where(g < 1 - 1e-12, 0.0, s0),
        curve=lambda g, s0, t: stage_curve(g, s0, t, alpha, r),
        parts="F" * r,
        step=alpha,
    )
    return rows
