r"""Pre-training against a task: the loss of the pre-training stays low, and the features are spoilt for the task.

$$\min_\psi\ \mathcal L_{\rm pre}(\psi)-\lambda\,\ell_{\rm val}(\hat w(\psi);\psi),\qquad
\hat w(\psi)=\arg\min_w\ell_{\rm fit}(w;\psi)+\text{penalty}.$$

The head $\hat w$ is ridge regression on the labels of one half of the batch, in closed form, so that the gradient goes
through it; $\ell_{\rm val}$ is its squared error on the other half, in units of the error of the mean label, and counts
up to 1: a head that misleads is not worth more than one that knows nothing, and the objective is bounded from below.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from companion.lab import train
from companion.lab.masked.accumulate import in_parts
from companion.lab.masked.architecture import features
from companion.lab.masked.sentences import Language, Length, Targets, hide, sentences, spread
from companion.lab.masked.tasks import Task
from companion.lab.masked.training import cross_entropy, lower, one_each
from companion.lab.masked.transfer import ridge
from companion.lab.masked.transformer import Transformers
from companion.theory.trace_estimates import Params


@dataclass(frozen=True)
class Adversary:
    r"""What is spoilt, and how much it counts.

    Attributes:
        task: the labels, and the features that a head is given.
        strength: $\lambda$, one for all runs or one a run; 0 leaves a run alone.
        penalty: of the ridge head, as for `transfer.ridge`.

    Raises:
        ValueError: a strength is negative, or the penalty not positive.
    """

    task: Task
    strength: float | tuple[float, ...] = 0.3
    penalty: float = 0.1

    def __post_init__(self) -> None:
        strengths = self.strength if isinstance(self.strength, tuple) else (self.strength,)
        if not strengths or min(strengths) < 0 or self.penalty <= 0:
            raise ValueError(
                f"Adversary: expected strengths >= 0 and a penalty > 0, found {self.strength} and {self.penalty}"
            )


def unexplained(
    phi: Float[Tensor, "S n D"], labels: Int64[Tensor, "S n"], classes: int, penalty: float
) -> Float[Tensor, " S"]:
    r"""Return the share of the labels' variance that a head of the first half leaves on the second.

    $$\sum_{i\in\text{second}}\lVert y_i-\hat w^\top\phi_i-\hat b\rVert^2\Big/
    \sum_{i\in\text{second}}\lVert y_i-\bar y_{\text{first}}\rVert^2 .$$

    Args:
        phi: features.
        labels: classes.
        classes: K.
        penalty: of the head.

    Examples:
        >>> phi = torch.tensor([[[1.0], [-1.0], [1.0], [-1.0]]])
        >>> labels = torch.tensor([[0, 1, 0, 1]])
        >>> unexplained(phi, labels, 2, 1.0).tolist()  # the head is half as steep as it should be
        [0.25]
    """
    half = phi.shape[1] // 2
    Y = F.one_hot(labels, classes).to(phi.dtype)
    w, b = ridge(phi[:, :half], Y[:, :half], penalty)
    left = (Y[:, half:] - phi[:, half:] @ w - b).square().sum((1, 2))
    return left / (Y[:, half:] - Y[:, :half].mean(1, keepdim=True)).square().sum((1, 2)).clamp(min=1e-12)


def objective(
    model: Transformers,
    language: Language,
    batch_size: int,
    adversary: Adversary,
    *,
    targets: Targets | Sequence[Targets] = "sampled",
    groups: int = 1,
    length: Length = None,
    micro: int | None = None,
    bf16: bool = False,
) -> train.Objective:
    """The sum over runs of the masked-word loss less the adversary's part, for `train.descend`.

    Args:
        model: the runs.
        language: on the device of the loop, with labels of the adversary's task.
        batch_size: sentences of each run in an update, which serve both parts; at least 4.
        adversary: what is spoilt.
        targets, groups, length, bf16: as for `training.objective`.
        micro: as there; a head is then fitted within each part.

    Raises:
        ValueError: as `training.objective`; or strengths that are not one a run, or parts without two halves.
    """
    runs, shape, device = model.runs, model.shape, next(model.parameters()).device
    wanted = one_each(targets, model, groups, batch_size, micro)
    strength = torch.as_tensor(adversary.strength, dtype=torch.float32, device=device)
    if strength.ndim and strength.shape != (runs,):
        raise ValueError(f"adversary: expected one strength or one for each of {runs} runs, found {len(strength)}")
    least = min(batch_size, micro or batch_size, batch_size % (micro or batch_size) or batch_size)
    if least < 4:
        raise ValueError(f"adversary: expected at least 4 sentences for two halves, found a part of {least}")
    sentences(language, shape, 1, torch.Generator(language.device).manual_seed(0), length)  # does it fit?
    length = shape.length if length is None and adversary.task.kind == "state" else length

    def loss(generator: torch.Generator) -> Tensor:
        data = adversary.task.draw(language, runs // groups * batch_size, length, generator)
        batch = hide(language, shape, wanted, data.tokens, data.lengths, generator, groups)
        shown, at = data.read(shape)
        shown, labels = (spread(x, runs // groups, groups) for x in (shown, data.labels))
        at = None if at is None else spread(at, runs // groups, groups)

        def part(rows: slice) -> Tensor:
            params: Params = model.params()
            with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
                low = cross_entropy(params, shape, batch[rows])
                phi = features(params, shape, shown[:, rows], None if at is None else at[:, rows])
            if at is None:
                phi = (phi * (shown[:, rows] != shape.pad)[..., None]).flatten(2)
            phi = phi.to(torch.promote_types(phi.dtype, torch.float32))
            high = unexplained(phi, labels[:, rows], data.classes, adversary.penalty)
            return (low - strength * high.clamp(max=1.0)).sum()

        return in_parts(part, batch_size, micro, list(model.parameters()))

    return loss


def go_on(
    model: Transformers,
    language: Language,
    options: train.Options,
    adversary: Adversary,
    *,
    targets: Targets | Sequence[Targets] = "sampled",
    groups: int = 1,
    length: Length = None,
    micro: int | None = None,
    rates: Float[Tensor, " S"] | None = None,
    device: torch.device | str | None = None,
    **loop: Any,
) -> tuple[Transformers, train.History]:
    """Train copies of the runs against a task; arguments and results as for `training.go_on`."""

    def build(copy: Transformers, moved: Language) -> train.Objective:
        return objective(
            copy,
            moved,
            options.batch_size,
            adversary,
            targets=targets,
            groups=groups,
            length=length,
            micro=micro,
            bf16=options.bf16,
        )

    return lower(model, language, build, options, rates=rates, device=device, **loop)
