"""What fine-tunes are worth, one by one, averaged and together: on images like those of training, and on shifted ones.

Whatever is chosen is chosen on held-out images; test images are looked at afterwards, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from companion.lab import pixels
from companion.lab.soups import Draw, Recipe, network, with_probe
from companion.theory.curvature import Params
from companion.theory.flatness.soup import ensemble, soup

SHIFTS = ("noise", "blur", "shift", "contrast")
ROWS = ("probe", "mean", "best", "uniform", "greedy", "ensemble")


def shifted(x: Float[Tensor, "n c h w"], generator: torch.Generator) -> dict[str, Float[Tensor, "n c h w"]]:
    """The images under four changes that no fine-tune has seen in this strength.

    Gaussian noise of standard deviation 0.2; blur of standard deviation 0.6 pixels; moved by one pixel down and to the
    right, black coming in; half the contrast.

    Args:
        x: images with pixels in [0, 1].
        generator: source of the noise.

    Returns:
        The images of each of `SHIFTS`.
    """
    n, _, h, w = x.shape
    return {
        "noise": x + 0.2 * torch.randn(x.shape, generator=generator),
        "blur": pixels.gaussian_blur(x, torch.full((n,), 0.6)),
        "shift": functional.pad(x, (1, 0, 1, 0))[:, :, :h, :w],
        "contrast": pixels.adjust_contrast(x, torch.full((n,), 0.5)),
    }


def right(logits: Float[Tensor, "*S n V"], y: Int64[Tensor, " n"]) -> Float[Tensor, "*S"]:
    """Share of the rows whose largest logit is the label's.

    >>> right(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([0, 1])).item()
    0.5
    """
    return (logits.argmax(-1) == y).double().mean(-1)


def greedy(models: Sequence[Params], score: Callable[[Params], float]) -> list[int]:
    """Which models a greedy soup is made of.

    Models are taken in the order of their scores, best first; one stays if the soup with it scores more than the soup
    without it.

    Args:
        models: parameters of the same names and shapes.
        score: accuracy on held-out images.

    Returns:
        Positions in `models`, in the order in which they came in.

    References:
        Wortsman et al. (2022); ties as in the authors' published code: an equal score is no gain.

    >>> points = [{"x": torch.tensor(x)} for x in (2.0, -1.0, 5.0)]
    >>> greedy(points, lambda p: -abs(float(p["x"])))  # -1 first; with 2 in it the soup is at 0.5; 5 does not help
    [1, 0]
    """
    alone = [score(model) for model in models]
    first, *others = sorted(range(len(models)), key=lambda i: -alone[i])
    chosen, reached = [first], alone[first]
    for i in others:
        found = score(soup([models[j] for j in [*chosen, i]]))
        if found > reached:
            chosen, reached = [*chosen, i], found
    return chosen


def choose(draw: Draw, how: Recipe) -> dict[str, list[int]]:
    """The fine-tunes that "best", "uniform" and "greedy" average, chosen on the draw's held-out images."""
    score = held_out_score(draw, how)
    alone = [score(model) for model in draw.models]
    return {
        "best": [alone.index(max(alone))],
        "uniform": list(range(len(draw.models))),
        "greedy": greedy(draw.models, score),
    }


def held_out_score(draw: Draw, how: Recipe) -> Callable[[Params], float]:
    """Accuracy on the held-out images of a draw, as a function of the weights."""
    x, y = how.inputs(draw.held_out.float()), draw.held_out.labels
    return lambda model: float(right(_logits(model, x), y))


def scores(
    draw: Draw, how: Recipe, sets: Mapping[str, Float[Tensor, "n p"]], y: Int64[Tensor, " n"]
) -> dict[str, dict[str, float]]:
    """Accuracies of `ROWS` on sets of test images that share their labels.

    Args:
        draw: the fine-tunes.
        how: the recipe.
        sets: inputs by name, as `Recipe.inputs` makes them.
        y: labels.

    Returns:
        Accuracy in [0, 1] by row and set; "probe" is the start, "mean" the mean accuracy of single fine-tunes,
        "ensemble" averages the logits of all.
    """
    averages = {row: soup([draw.models[i] for i in chosen]) for row, chosen in choose(draw, how).items()}
    found: dict[str, dict[str, float]] = {row: {} for row in ROWS}
    for name, x in sets.items():
        for row, model in {"probe": draw.start, **averages}.items():
            found[row][name] = float(right(_logits(model, x), y))
        each = torch.stack([_logits(model, x) for model in draw.models])
        found["mean"][name] = float(right(each, y).mean())
        found["ensemble"][name] = float(right(each.mean(0), y))
    return found


def strangers(draws: Sequence[Draw]) -> list[list[Params]]:
    """As many families of fine-tunes as there are draws, each with all settings and no encoder twice: a Latin square.

    Raises:
        ValueError: there are fewer draws than settings.
    """
    settings = len(draws[0].models)
    if len(draws) < settings:
        raise ValueError(f"strangers: expected at least {settings} draws, one a setting, found {len(draws)}")
    return [[draws[(r + i) % len(draws)].models[i] for i in range(settings)] for r in range(len(draws))]


def probes(draw: Draw, how: Recipe, count: int, seed: int) -> list[Params]:
    """Linear probes on the frozen encoder of a draw, float64, each on a random half of the labelled images."""
    generator = torch.Generator().manual_seed(seed)
    start = {name: p.double() for name, p in draw.start.items()}
    last = len(start) // 2 - 1
    body = {name: p for name, p in start.items() if int(name[1:]) < last}
    found = []
    for _ in range(count):
        half = draw.labelled.subset(torch.randperm(len(draw.labelled), generator=generator)[: len(draw.labelled) // 2])
        x, y = how.inputs(half.float()).double(), half.labels
        found.append(with_probe(body, x, y, len(half.classes), how.penalty))
    return found


def disagreement(models: Sequence[Params], x: Float[Tensor, "n p"]) -> float:
    """Largest difference of a logit of the uniform soup from that of the ensemble, over the largest logit's size."""
    with torch.inference_mode():
        together = ensemble(lambda p: network(p, x), models)
        return float((network(soup(models), x) - together).abs().max() / together.abs().max())


@torch.inference_mode()
def _logits(model: Params, x: Tensor) -> Tensor:
    return network(model, x)
