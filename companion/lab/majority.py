"""SGD and Adam on the soft majority: many runs at once from one minimiser, in the one training loop.

The runs are independent: each has its own weights, stacked on a leading axis, and its own samples. The objective is the
sum of their losses, so that every run has its own gradient. In float64, since it is held against theory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from companion.lab import train
from companion.theory.flatness.majority_trace import root_trace, trace
from companion.theory.flatness.soft_majority import Point, SoftMajority, excess_loss, project, transverse


@dataclass(frozen=True)
class Recipe:
    r"""How to train on the soft majority.

    Attributes:
        steps: number of updates.
        lr: learning rate, constant.
        batch: fresh samples in an update of each run.
        optimizer: "sgd", without momentum, or "adam" with its usual $\beta_1=.9$, $\beta_2=.999$.
        labels: "sampled", a token drawn from the truth; or "soft", the true probabilities as targets.
        runs: independent runs.
        every: updates between two looks.
        seed: of the samples.
    """

    steps: int = 1600
    lr: float = 0.1
    batch: int = 1
    optimizer: str = "sgd"
    labels: str = "sampled"
    runs: int = 16
    every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant; the training loop checks the rest."""
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f'optimizer of a recipe: expected "sgd" or "adam", found {self.optimizer!r}')
        if self.labels not in ("sampled", "soft"):
            raise ValueError(f'labels of a recipe: expected "sampled" or "soft", found {self.labels!r}')
        for name in ("runs", "batch", "steps", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a recipe: expected at least 1, found {getattr(self, name)}")

    @property
    def slow_unit(self) -> float:
        r"""Slow time of one update: $u=\eta^2k/B$ for SGD, and $\eta^2k$ for Adam."""
        return self.lr**2 / (self.batch if self.optimizer == "sgd" else 1)

    @property
    def options(self) -> train.Options:
        """The same for the training loop."""
        return train.Options(
            steps=self.steps,
            batch_size=self.batch,
            lr=self.lr,
            optimizer=self.optimizer,
            momentum=0.0,
            weight_decay=0.0,
            cosine=False,
            log_every=1000,
            checkpoint_every=5000,
            seed=self.seed,
        )


class Runs(nn.Module):
    """Copies of one starting point, trained apart: a of shape (S, h) and W of (S, h, d)."""

    def __init__(self, start: Point, runs: int) -> None:
        super().__init__()
        self.a = nn.Parameter(start.a.detach().clone().expand(runs, -1).contiguous())
        self.W = nn.Parameter(start.W.detach().clone().expand(runs, -1, -1).contiguous())

    def forward(self, z: Float[Tensor, "S B d"]) -> Float[Tensor, "S B"]:
        """Logits of the masked token in each context."""
        return torch.bmm(z, torch.bmm(self.a[:, None, :], self.W).mT).squeeze(-1)

    def point(self) -> Point:
        """The present parameters, copied."""
        return Point(self.a.detach().clone(), self.W.detach().clone())


def objective(model: Runs, language: SoftMajority, recipe: Recipe) -> Callable[[torch.Generator], Tensor]:
    """The sum over runs of the mean cross-entropy on fresh samples; from a generator to a scalar."""
    runs = len(model.a)

    def loss(generator: torch.Generator) -> Tensor:
        device = model.a.device
        rows = torch.randint(len(language.contexts), (runs, recipe.batch), generator=generator, device=device)
        target = language.truth[rows]
        if recipe.labels == "sampled":
            target = torch.bernoulli(target, generator=generator)
        logits = model(language.contexts[rows])
        return functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / recipe.batch

    return loss


class Watch:
    """Looks at the runs now and then, and keeps their points; its memory goes into checkpoints."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.points: list[Point] = []

    def __call__(self, done: int, model: nn.Module) -> None:
        """Keep the present points."""
        assert isinstance(model, Runs)
        self.steps.append(done)
        self.points.append(model.point())

    def state_dict(self) -> dict[str, Any]:
        """What it has seen."""
        return {"steps": list(self.steps), "points": [tuple(point) for point in self.points]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up again."""
        self.steps, self.points = list(state["steps"]), [Point(*pair) for pair in state["points"]]


@dataclass(frozen=True)
class Seen:
    r"""The course of all runs at T looks, S runs; flatness is that of the iterate projected to $\mathcal M$.

    Attributes:
        recipe: how they were trained.
        steps: updates done, shape (T,), int64, from 0.
        points: the projected points, leading axes (T, S), float64.
        excess: excess loss of the iterate itself, in nats, shape (T, S).
        trace: $\mathrm{tr}H$, shape (T, S).
        root_trace: $\sum_i\sqrt{H_{ii}}$, shape (T, S).
        transverse: $\lVert W_\perp\rVert_F^2$, shape (T, S).
        seconds: wall time of the training loop.
    """

    recipe: Recipe
    steps: Int[Tensor, " T"]
    points: Point
    excess: Float[Tensor, "T S"]
    trace: Float[Tensor, "T S"]
    root_trace: Float[Tensor, "T S"]
    transverse: Float[Tensor, "T S"]
    seconds: float

    @property
    def slow(self) -> Float[Tensor, " T"]:
        r"""Slow time $u$ of each look."""
        return self.steps.double() * self.recipe.slow_unit

    def at(self, slow: float) -> int:
        """The look at a slow time.

        Raises:
            ValueError: if nobody looked within half an update of it.
        """
        look = int((self.slow - slow).abs().argmin())
        if abs(float(self.slow[look]) - slow) > 0.51 * self.recipe.slow_unit:
            raise ValueError(
                f"at: no look at slow time {slow:g}, the nearest is {float(self.slow[look]):g}; "
                f"looks are {self.recipe.every * self.recipe.slow_unit:g} apart"
            )
        return look


def run(
    start: Point,
    language: SoftMajority,
    recipe: Recipe,
    *,
    checkpoint: str | Path | None = None,
    device: torch.device | str | None = None,
) -> Seen:
    """Train from one minimiser and measure all that theory speaks of.

    Args:
        start: a minimiser, no leading axes; all runs start there.
        language: the language, on the device of `start`.
        recipe: the configuration.
        checkpoint: file that a killed run continues from.
        device: where to train; by default where `start` is. Measurements are taken on the CPU.

    Returns:
        What was seen.

    Raises:
        ValueError: the start has leading axes, or the checkpoint belongs to another run.
        FloatingPointError: a loss is not finite.
    """
    if start.a.ndim != 1:
        raise ValueError(f"run: expected one starting point, found leading axes {tuple(start.a.shape[:-1])}")
    model, watch = Runs(start, recipe.runs), Watch()
    model.to(device=device or start.a.device)
    history = train.descend(
        model,
        objective(model, _moved(language, model.a.device), recipe),
        recipe.options,
        what=f"{recipe.optimizer}, rate {recipe.lr:g}",
        checkpoint=checkpoint,
        observe=watch,
        observe_every=recipe.every,
    )
    language = _moved(language, torch.device("cpu"))
    raw = Point(*(torch.stack(x).double().cpu() for x in zip(*watch.points, strict=True)))
    on = project(raw, language)
    return Seen(
        recipe=recipe,
        steps=torch.tensor(watch.steps),
        points=on,
        excess=torch.stack([excess_loss(Point(a, W), language) for a, W in zip(*raw, strict=True)]),
        trace=trace(on, language),
        root_trace=root_trace(on, language),
        transverse=transverse(on).square().sum((-2, -1)),
        seconds=history.seconds,
    )


def _moved(language: SoftMajority, device: torch.device) -> SoftMajority:
    tensors = {n: getattr(language, n).to(device) for n in ("beta", "contexts", "truth", "M", "labels")}
    return SoftMajority(**tensors, floor=language.floor)
